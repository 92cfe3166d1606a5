"""Sentences that are hard to read, with the reading of a radiologist.

No rule was written on sentences/hard_sentences.yaml; rules were repaired on
sentences/dev_sentences.yaml. `make lexicon` prints both.
"""

from collections import Counter

import pytest

from dive.decisive.mentions import find_mentions
from tools import measure_lexicon

HARD = measure_lexicon.marked_set(measure_lexicon.DATA / "hard_sentences.yaml")
DEVELOPMENT = measure_lexicon.marked_set(measure_lexicon.DATA / "dev_sentences.yaml")


def share(reading) -> float:
    return reading.right / reading.marked


def test_the_hard_set_has_every_kind():
    kinds = Counter(entry["kind"] for entry in HARD)
    assert len(HARD) == len({entry["id"] for entry in HARD}) >= 60
    assert set(kinds) == {"checklist", "negation", "scope", "change", "hedge", "noun", "none"}
    polarities = Counter(one.polarity for entry in HARD for one in measure_lexicon.expected(entry))
    assert min(polarities[p] for p in ("positive", "negative", "uncertain")) > 20


@pytest.mark.parametrize("kind", ["checklist", "negation", "scope", "change", "hedge", "noun"])
def test_hard_sentences_of_each_kind(kind):
    """Marked mentions that were found with their polarity."""
    reading = measure_lexicon.read_marked_set(entry for entry in HARD if entry["kind"] == kind)
    assert share(reading) >= 0.90, "\n".join(reading.wrong)


def test_hard_sentences():
    reading = measure_lexicon.read_marked_set(HARD)
    assert share(reading) >= 0.95, "\n".join(reading.wrong)


def test_development_sentences():
    reading = measure_lexicon.read_marked_set(DEVELOPMENT)
    assert share(reading) >= 0.99, "\n".join(reading.wrong)


@pytest.mark.parametrize("entry", [e for e in DEVELOPMENT if e.get("none")], ids=lambda e: e["id"])
def test_what_is_no_finding(entry):
    assert measure_lexicon.read_marked_set([entry]).wrong == []


SIGNS = {"+": "positive", "-": "negative", "?": "uncertain"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("neg for ptx", "Pneumothorax-"),
        ("No pneumothorax, large left effusion.", "Pneumothorax-, Pleural Effusion+"),
        ("no longer any consolidation, just residual atelectasis", "Consolidation-, Atelectasis+"),
        ("The effusion has all but resolved.", "Pleural Effusion+"),
        ("Findings argue against pneumonia.", "Pneumonia-"),
        ("without evidence of worsening pneumothorax", "Pneumothorax+"),
        ("Opacity, likely within the left lower lobe.", "Lung Opacity+"),
        ("Pneumothorax is not the case.", "Pneumothorax-"),
        ("Consolidation has not developed.", "Consolidation-"),
        ("A pneumothorax has been ruled out.", "Pneumothorax-"),
        ("Pneumonia is considered unlikely.", "Pneumonia?"),
        ("Effusion is no longer present.", "Pleural Effusion-"),
        ("No pneumothorax, left effusion is larger.", "Pneumothorax-, Pleural Effusion+"),
        ("No consolidation; effusion has decreased.", "Consolidation-, Pleural Effusion+"),
        ("No pneumothorax but a moderate left effusion.", "Pneumothorax-, Pleural Effusion+"),
        ("Effusions and pneumothorax are absent.", "Pleural Effusion-, Pneumothorax-"),
        ("Neither consolidation nor edema.", "Consolidation-, Edema-"),
        (
            "No pneumothorax or effusion, and the heart is enlarged.",
            "Pneumothorax-, Pleural Effusion-, Cardiomegaly+",
        ),
        ("No effusion. Pneumothorax, however, is present.", "Pleural Effusion-, Pneumothorax+"),
        ("Pneumothorax unlikely.", "Pneumothorax?"),
        ("No substantial change in the moderate left effusion.", "Pleural Effusion+"),
        ("No interval change in consolidation.", "Consolidation+"),
        ("No evidence of worsening edema.", "Edema+"),
        ("No significant worsening of edema.", "Edema+"),
        ("Without progression of the consolidation.", "Consolidation+"),
        ("No increase in effusion.", "Pleural Effusion+"),
        ("No new consolidation or effusion.", "Consolidation-, Pleural Effusion-"),
        ("No new or worsening consolidation.", "Consolidation-"),
        ("No recurrent pneumothorax.", "Pneumothorax-"),
        ("No residual pneumothorax.", "Pneumothorax-"),
        ("The pneumothorax has not recurred.", "Pneumothorax-"),
        ("The effusion has not increased.", "Pleural Effusion+"),
        ("Pneumothorax is not larger.", "Pneumothorax+"),
        ("No enlarging effusion.", "Pleural Effusion+"),
        ("Effusion is all but gone.", "Pleural Effusion+"),
        ("Near-complete resolution of edema.", "Edema+"),
        ("Complete resolution of edema.", "Edema-"),
        ("The effusion has nearly completely cleared.", "Pleural Effusion+"),
        ("Resolving pneumonia.", "Pneumonia+"),
        ("Opacity, probably in the right middle lobe.", "Lung Opacity+"),
        ("Effusion, possibly loculated.", "Pleural Effusion+"),
        ("Effusion which is likely loculated.", "Pleural Effusion+"),
        ("Fracture, likely old.", "Fracture+"),
        ("Likely old fracture.", "Fracture?"),
        ("Consolidation, most likely aspiration.", "Consolidation+, Pneumonia?"),
        ("Consolidation is most likely aspiration.", "Consolidation+, Pneumonia?"),
        ("Consolidation, likely due to pneumonia.", "Consolidation+, Pneumonia?"),
        ("Opacity probably due to atelectasis.", "Lung Opacity+, Atelectasis?"),
        ("Opacity, which may also reflect edema.", "Lung Opacity+, Edema?"),
        (
            "Opacities could represent atelectasis, aspiration, infection.",
            "Lung Opacity+, Atelectasis?, Pneumonia?, Pneumonia?",
        ),
        ("Cannot exclude superimposed pneumonia.", "Pneumonia?"),
        ("Pneumonia is a consideration.", "Pneumonia?"),
        ("Concern for pneumonia.", "Pneumonia?"),
        ("Findings worrisome for edema.", "Edema?"),
        ("Findings in keeping with edema.", "Edema+"),
        ("Suspicion of pneumothorax is low.", "Pneumothorax?"),
        ("Low suspicion for pneumonia.", "Pneumonia?"),
        ("Pneumothorax is doubtful.", "Pneumothorax?"),
        ("There is a suggestion of a nodule.", "Lung Lesion?"),
        ("Effusion cannot be assessed.", "Pleural Effusion?"),
        ("No convincing pneumothorax.", "Pneumothorax-"),
        ("No definitive consolidation.", "Consolidation-"),
        ("No focal consolidation with air bronchograms.", "Consolidation-, Lung Opacity-"),
        ("No effusion secondary to heart failure.", "Pleural Effusion-, Edema-"),
        ("No pneumothorax, also no effusion.", "Pneumothorax-, Pleural Effusion-"),
        ("No pneumothorax. There is also a small effusion.", "Pneumothorax-, Pleural Effusion+"),
        ("There may also be an effusion.", "Pleural Effusion?"),
        ("Possible pneumonia with associated effusion.", "Pneumonia?, Pleural Effusion?"),
        ("Lungs free from edema.", "Edema-"),
        ("Absence of pneumothorax.", "Pneumothorax-"),
        ("Lack of consolidation.", "Consolidation-"),
        ("No pneumothorax on either side.", "Pneumothorax-"),
        ("No left pneumothorax.", "Pneumothorax-"),
        ("Small left and no right effusion.", "Pleural Effusion+"),
        ("Right effusion, none on the left.", "Pleural Effusion+"),
        ("No right effusion, small left effusion.", "Pleural Effusion-, Pleural Effusion+"),
        ("Minimal if any edema.", "Edema?"),
        ("Little if any effusion.", "Pleural Effusion?"),
        ("Trace effusion, if any.", "Pleural Effusion?"),
        ("No more than trace effusion.", "Pleural Effusion+"),
        ("No pneumothorax seen, moderate effusion persists.", "Pneumothorax-, Pleural Effusion+"),
        (
            "Consolidation, effusion and pneumothorax: not seen.",
            "Consolidation-, Pleural Effusion-, Pneumothorax-",
        ),
        ("Consolidation is excluded.", "Consolidation-"),
        ("Consolidation cannot be confirmed or excluded.", "Consolidation?"),
        ("Pneumothorax not excluded.", "Pneumothorax?"),
        ("No pneumothorax except a tiny apical one.", "Pneumothorax-"),
        ("No acute fracture.", "Fracture-"),
        (
            "Negative for pneumothorax, effusion, or fracture.",
            "Pneumothorax-, Pleural Effusion-, Fracture-",
        ),
        ("neg ptx", "Pneumothorax-"),
        ("neg for effusion/ptx", "Pleural Effusion-, Pneumothorax-"),
        ("ptx neg", "Pneumothorax-"),
        ("No e/o pneumonia.", "Pneumonia-"),
        ("w/o effusion", "Pleural Effusion-"),
        ("Chest tube removed without pneumothorax.", "Support Devices-, Pneumothorax-"),
        ("Interval removal of the ETT.", "Support Devices-"),
        ("ETT has been removed.", "Support Devices-"),
        ("Extubated. No pneumothorax.", "Pneumothorax-"),
        ("No pneumothorax after chest tube placement.", "Pneumothorax-, Support Devices+"),
        ("No pneumothorax following removal of the chest tube.", "Pneumothorax-, Support Devices-"),
        (
            "No pneumothorax status post thoracentesis, small effusion remains.",
            "Pneumothorax-, Pleural Effusion+",
        ),
        ("Previously seen consolidation is no longer evident.", "Consolidation-"),
        (
            "Previously described effusion has resolved, with persistent atelectasis.",
            "Pleural Effusion-, Atelectasis+",
        ),
        ("The previously noted nodule is again seen.", "Lung Lesion+"),
        ("The edema has improved, effusion unchanged.", "Edema+, Pleural Effusion+"),
        (
            "No consolidation or effusion is seen; mild edema.",
            "Consolidation-, Pleural Effusion-, Edema+",
        ),
        (
            "The lungs are clear without effusion or pneumothorax, but there is cardiomegaly.",
            "No Finding-, Pleural Effusion-, Pneumothorax-, Cardiomegaly+",
        ),
        ("No evidence to suggest pneumonia.", "Pneumonia-"),
        ("Nothing to suggest pneumonia.", "Pneumonia-"),
        ("Findings do not suggest pneumonia.", "Pneumonia-"),
        ("This argues against edema.", "Edema-"),
        ("Evidence against pneumothorax.", "Pneumothorax-"),
        ("Not suggestive of pneumonia.", "Pneumonia-"),
        ("Not consistent with edema.", "Edema-"),
        ("Not typical of edema.", "Edema-"),
        ("Unlikely to represent pneumonia.", "Pneumonia?"),
        ("Atelectasis rather than pneumonia.", "Atelectasis+, Pneumonia-"),
        ("Atelectasis is favored over pneumonia.", "Atelectasis?, Pneumonia?"),
        ("Atelectasis more likely than pneumonia.", "Atelectasis?, Pneumonia?"),
        ("Opacity +/- effusion.", "Lung Opacity+, Pleural Effusion?"),
        ("Effusion with or without atelectasis.", "Pleural Effusion+, Atelectasis?"),
        ("Effusion or atelectasis.", "Pleural Effusion?, Atelectasis?"),
        ("Nodule in the right upper or middle lobe.", "Lung Lesion+"),
        ("No pneumothorax, stable effusion, no edema.", "Pneumothorax-, Pleural Effusion+, Edema-"),
        ("No effusion, just atelectasis.", "Pleural Effusion-, Atelectasis+"),
        ("No effusion, only atelectasis.", "Pleural Effusion-, Atelectasis+"),
        ("No effusion, merely atelectasis.", "Pleural Effusion-, Atelectasis+"),
        ("No effusion, simply atelectasis.", "Pleural Effusion-, Atelectasis+"),
        ("No effusion, bibasilar atelectasis.", "Pleural Effusion-, Atelectasis+"),
        ("No effusion, sizable pneumothorax.", "Pleural Effusion-, Pneumothorax+"),
        ("No effusion, trace pneumothorax.", "Pleural Effusion-, Pneumothorax+"),
        ("No effusion, dense consolidation.", "Pleural Effusion-, Consolidation+"),
        (
            "No effusion, extensive consolidation at the right base.",
            "Pleural Effusion-, Consolidation+",
        ),
        ("No effusion, apical pneumothorax.", "Pleural Effusion-, Pneumothorax-"),
        ("No effusion, subsegmental atelectasis.", "Pleural Effusion-, Atelectasis+"),
        ("No effusion - small pneumothorax.", "Pleural Effusion-, Pneumothorax+"),
        ("No effusion (small pneumothorax).", "Pleural Effusion-, Pneumothorax+"),
        ("No pneumothorax, 3 mm nodule in the RUL.", "Pneumothorax-, Lung Lesion+"),
        ("No pneumothorax, post-surgical atelectasis.", "Pneumothorax-, Atelectasis+"),
        ("no ptx, sm L eff, mod cardiomegaly", "Pneumothorax-, Pleural Effusion+, Cardiomegaly+"),
        ("No pneumothorax, new right lower lobe consolidation.", "Pneumothorax-, Consolidation+"),
        ("No pneumothorax, resolving edema.", "Pneumothorax-, Edema+"),
        ("No pneumothorax, huge effusion.", "Pneumothorax-, Pleural Effusion+"),
        ("No pneumothorax, enlarged heart.", "Pneumothorax-, Cardiomegaly+"),
        ("No pneumothorax, cardiomegaly unchanged.", "Pneumothorax-, Cardiomegaly+"),
        ("No pneumothorax, effusion unchanged.", "Pneumothorax-, Pleural Effusion+"),
        ("No pneumothorax, effusion or edema.", "Pneumothorax-, Pleural Effusion-, Edema-"),
        ("Heart not enlarged.", "Cardiomegaly-"),
        ("The lungs are not clear.", "No Finding+"),
        ("No significant effusion.", "Pleural Effusion-"),
        ("No large effusion.", "Pleural Effusion-"),
        ("Cannot rule out fracture.", "Fracture?"),
        ("r/o ptx", "Pneumothorax?"),
        ("Evaluate for pneumothorax.", "Pneumothorax?"),
    ],
)
def test_readings(text, wanted):
    """Negation, change and hedges: class and sign of each mention, in the text's order."""
    got = [(m.cls, m.polarity) for m in find_mentions(text) if m.cls != "Other"]
    assert got == [(one[:-1], SIGNS[one[-1]]) for one in wanted.split(", ")]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("Moderate left lower lobe airspace opacity.", "airspace opacity"),
        ("Moderate bilateral airspace disease.", "airspace disease"),
        ("Mild interstitial edema.", "interstitial edema"),
        ("Diffuse reticular opacities.", "reticular opacities"),
        ("Bilateral ground-glass opacities.", "ground-glass opacities"),
        ("Patchy ground glass opacity.", "Patchy ground glass opacity"),
        ("Bulky hilar lymphadenopathy.", "Bulky hilar lymphadenopathy"),
        ("Mediastinal and hilar adenopathy.", "Mediastinal and hilar adenopathy"),
        ("Small pleural effusion.", "pleural effusion"),
        ("Coarse interstitial markings.", "Coarse interstitial markings"),
        ("Multifocal pneumonia.", "Multifocal pneumonia"),
        ("Subsegmental atelectasis.", "Subsegmental atelectasis"),
        ("Alveolar consolidation.", "Alveolar consolidation"),
        ("Left hilar mass.", "hilar mass"),
        ("Degenerative disc disease.", "Degenerative disc disease"),
        ("Right internal jugular catheter.", "internal jugular catheter"),
        ("Cavitary lesion.", "Cavitary lesion"),
    ],
)
def test_nouns_are_whole(text, whole):
    """Adjectives and nouns that belong to the finding are in its span."""
    spans = [text[a:b] for m in find_mentions(text) for a, b in m.spans]
    assert whole in spans


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("Left lung: opacity.", ["opacity"]),
        ("LUNGS: Consolidation.", ["Consolidation"]),
        ("Heart: mildly enlarged.", ["enlarged"]),
        ("Lung volumes: low.", ["volumes: low"]),
    ],
)
def test_a_heading_is_no_part_of_what_it_heads(text, spans):
    """Unless the words after it mean nothing without it."""
    assert [text[a:b] for m in find_mentions(text) for a, b in m.spans] == spans


@pytest.mark.parametrize(
    "text",
    [
        "The patient is slightly rotated.",
        "Slightly rotated film.",
        "Mild patient rotation.",
        "Poor inspiratory effort.",
        "Suboptimal inspiration.",
        "Expiratory film.",
        "Respiratory motion artifact.",
        "Limited portable exam.",
        "AP lordotic projection.",
        "The apices are excluded from the film.",
        "Technically limited by body habitus.",
        "Sternal wires intact.",
        "Median sternotomy wires are intact and aligned.",
        "Intact sternotomy wires.",
        "Spinal fixation hardware is intact.",
    ],
)
def test_how_the_film_was_taken_is_no_finding(text):
    assert [m.polarity for m in find_mentions(text) if m.polarity != "negative"] == []
