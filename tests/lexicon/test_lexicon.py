"""The lexicon's files, its little language, the user's own files, and headings."""

import random
import re
import time

import numpy as np
import pytest

import dive
from dive.decisive.mentions import find_mentions
from dive.demo.reports import write_report
from dive.demo.style import draw_style
from dive.demo.world import FINDINGS, draw_labels
from dive.errors import DiveError
from dive.lexicon import CHEXPERT_CLASSES, OTHER, default_lexicon, lexicon_version, load_lexicon
from dive.lexicon.terms import Automaton, expand, longest_first
from tools.measure_lexicon import with_heading


def names(text: str, lexicon=None) -> list[str]:
    return [m.name for m in find_mentions(text, lexicon)]


def test_every_entry_is_complete():
    lexicon = default_lexicon()
    classes = {entry.cls for entry in lexicon}
    assert classes == {*CHEXPERT_CLASSES, OTHER}
    assert len(lexicon) >= 50
    for entry in lexicon:
        assert entry.terms and all(expand(term) for term in entry.terms), entry.name
        # "Other" entries have their heading; entries that are no finding have none
        assert entry.mesh or entry.ignore or entry.name == "Abnormality", entry.name


@pytest.mark.parametrize(
    ("term", "wanted"),
    [
        ("pleural effusion(s)", {("pleural", "effusion"), ("pleural", "effusions")}),
        ("(large) hernia", {("hernia",), ("large", "hernia")}),
        ("[cardiac|heart] size", {("cardiac", "size"), ("heart", "size")}),
        ("heart ... enlarge*", {("heart", "...", "enlarge*")}),
        ("{lungs are} clear", {("{lungs", "{are", "clear")}),
        ("{(right|left) lung} mass", {("{lung", "mass"), ("{right", "{lung", "mass"),
                                      ("{left", "{lung", "mass")}),
        ("air-space", {("air", "space")}),
        ("[a|b (c|d)]", {("a",), ("b",), ("b", "c"), ("b", "d")}),
    ],
)  # fmt: skip
def test_language_of_terms(term, wanted):
    assert set(expand(term)) == wanted


@pytest.mark.parametrize(
    "term",
    ["(", "a ]", "[a|b", "... a", "a ..", "", "()", "{a}", "a {b", "mo*re", "a,b", "{ {a} } b"],
)
def test_malformed_terms_are_named(term):
    with pytest.raises(DiveError, match="lexicon term"):
        expand(term)


def test_a_term_with_too_many_readings_is_refused():
    with pytest.raises(DiveError, match="more than"):
        expand(" ".join(["(a|b|c|d|e)"] * 8))


def test_automaton_agrees_with_plain_search():
    """Random terms over a small alphabet: every occurrence, and no other, is found."""
    rng = random.Random(0)
    for _ in range(200):
        terms = {" ".join(rng.choices("abc", k=rng.randint(1, 3))) for _ in range(4)}
        automaton = Automaton((term, term) for term in terms)
        words = rng.choices("abc", k=8)
        found = automaton.matches(words, [False] + [True] * 7, 0, 8)
        got = sorted((m.first, m.end, m.value) for m in found)
        assert got == sorted(
            (i, i + len(t.split()), t)
            for t in terms
            for i in range(8)
            if words[i : i + len(t.split())] == t.split()
        )
        chosen = longest_first(list(found))
        used = [w for m in chosen for w in m.words]
        assert len(used) == len(set(used))
        if found:
            assert any(len(m.words) == max(len(f.words) for f in found) for m in chosen)


def test_longest_first():
    assert names("pericardial effusion and pleural effusion") == [
        "Pericardial Effusion", "Pleural Effusion",
    ]  # fmt: skip
    assert names("cystic fibrosis, fibrosis, a cyst") == [
        "Cystic Fibrosis", "Scar or Fibrosis", "Cyst",
    ]  # fmt: skip
    assert names("calcified granuloma, calcified nodule, nodule") == [
        "Granuloma", "Granuloma", "Lung Lesion",
    ]  # fmt: skip
    assert names("subcutaneous emphysema; emphysema") == ["Subcutaneous Emphysema", "Emphysema"]


def test_whole_words_only():
    assert names("Amassed, effusively, hemithorax, internodular, unclear, abnormally") == []
    assert names("mass effect upon bone density") == []


@pytest.mark.parametrize(
    "text",
    [
        "The heart, mediastinum, lungs, pleura, diaphragm, ribs, spine and trachea.",
        "Frontal and lateral views of the chest. Comparison is made with the prior study.",
        "Cardiomediastinal silhouette is stable. Hilar contours. Pulmonary vasculature.",
        "The costophrenic angles, aortic arch, soft tissues, upper abdomen.",
    ],
)
def test_anatomy_alone_is_no_mention(text):
    assert names(text) == []


@pytest.mark.parametrize(
    ("slip", "name"),
    [
        ("pnuemothorax", "Pneumothorax"), ("pneumothroax", "Pneumothorax"),
        ("cardiomegly", "Cardiomegaly"), ("cardiomegally", "Cardiomegaly"),
        ("consoldiation", "Consolidation"), ("atelectesis", "Atelectasis"),
        ("effussion", "Pleural Effusion"), ("emphsyema", "Emphysema"),
        ("osteophtyes", "Degenerative Spine"), ("granulma", "Granuloma"),
        ("infilrate", "Lung Opacity"), ("opacites", "Lung Opacity"),
    ],
)  # fmt: skip
def test_slips_of_the_pen(slip, name):
    assert names(f"There is {slip}.") == [name]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Worsening RLL atx.", ["Atelectasis"]),
        ("Large bilat effs, no pneumo.", ["Pleural Effusion", "Pneumothorax"]),
        ("Right pleural eff.", ["Pleural Effusion"]),
        ("Side eff of the drug.", []),
        ("Trach in place. Trachea unremarkable.", ["Tube or Drain", "No Finding"]),
        ("Swan tip in the main pulmonary artery.", ["Catheter or Line"]),
        ("No rib injury or skeletal injuries.", ["Fracture", "Fracture"]),
        ("Adult respiratory distress syndrome.", ["Acute Respiratory Distress Syndrome"]),
        ("In no acute distress, ARDS.", ["Acute Respiratory Distress Syndrome"]),
        ("Pneumonectomy and pneumoconiosis.", ["Surgical Change", "Interstitial Disease"]),
    ],
)
def test_shorthand_of_intensive_care(text, wanted):
    assert names(text) == wanted


@pytest.mark.parametrize("word", ["hemithorax", "injection", "perfusion", "position", "capacities"])
def test_neighbours_of_findings_are_left_alone(word):
    assert names(f"There is {word}.") == []


# A heading as the Open-i collection writes its tags, and a sentence that states it.
TAGGED = [
    ("Cardiomegaly/mild", "The heart is slightly enlarged."),
    ("Cardiomegaly/borderline", "Heart size is at the upper limits of normal."),
    ("Calcified Granuloma/lung/upper lobe/left", "Calcified granuloma in the left upper lobe."),
    ("Calcinosis/lung/hilum/lymph nodes", "There are calcified right hilar lymph nodes."),
    ("Calcinosis/blood vessels", "Vascular calcification is noted."),
    ("Granulomatous Disease", "Old granulomatous disease."),
    ("Cicatrix/lung/base/left", "Scarring at the left base."),
    ("Pulmonary Fibrosis/interstitial", "Interstitial fibrosis."),
    ("Lung Diseases, Interstitial/chronic", "Chronic interstitial lung disease."),
    ("Emphysema", "Emphysematous changes are present."),
    ("Bullous Emphysema", "Bullous emphysema."),
    ("Pulmonary Emphysema", "Bullae in the upper lobes."),
    ("Pulmonary Disease, Chronic Obstructive", "Findings of COPD."),
    ("Bronchiectasis/lung", "Bronchiectatic change."),
    ("Scoliosis/thoracic vertebrae", "There is dextroscoliosis of the thoracic spine."),
    ("Spondylosis/thoracic vertebrae", "Thoracic spondylosis."),
    ("Osteophyte/thoracic vertebrae/multiple", "Bridging osteophytes."),
    ("Thoracic Vertebrae/degenerative/mild", "Degenerative disc disease of the thoracic spine."),
    ("Spine/degenerative/mild", "Mild degenerative changes of the spine."),
    ("Kyphosis/thoracic vertebrae", "Exaggerated kyphosis."),
    ("Aorta/tortuous", "The aorta is tortuous."),
    ("Aorta, Thoracic/tortuous/mild", "Tortuosity of the thoracic aorta."),
    ("Atherosclerosis/aorta", "Atherosclerotic calcification of the aortic arch."),
    ("Hernia, Hiatal/large", "A large hiatus hernia."),
    ("Hernia, Diaphragmatic", "Bochdalek hernia."),
    ("Surgical Instruments/abdomen", "Cholecystectomy clips."),
    ("Sternotomy", "Median sternotomy wires."),
    ("Mastectomy/left", "Left mastectomy."),
    ("Breast Implants", "Bilateral breast implants."),
    ("Sutures/lung", "Suture material in the left lung."),
    ("Implanted Medical Device/left", "Left-sided pacemaker with two leads."),
    ("Medical Device", "Right chest port with its tip in the SVC."),
    ("Catheters, Indwelling/right", "Right PICC line terminates in the SVC."),
    ("Tube, Inserted/trachea", "Endotracheal tube 4 cm above the carina."),
    ("Stents/coronary vessels", "Coronary artery stent."),
    ("Fractures, Bone/ribs/healed", "Healed left rib fractures."),
    ("Deformity/ribs/right", "Deformity of the right seventh rib."),
    ("Deformity/thoracic vertebrae", "Mild deformity of a thoracic vertebra."),
    ("Bone Diseases, Metabolic/spine", "The bones are osteopenic."),
    ("Costophrenic Angle/right/blunted", "Blunting of the right costophrenic angle."),
    ("Costophrenic Angle/left/posterior/blunted", "The left costophrenic sulcus is blunted."),
    ("Diaphragm/right/elevated", "Elevation of the right hemidiaphragm."),
    ("Diaphragm/bilateral/flattened", "The diaphragms are flattened."),
    ("Diaphragmatic Eventration/right", "Eventration of the right hemidiaphragm."),
    ("Cysts/lung", "A thin-walled cyst."),
    ("Cavitation/lung", "Cavitary lesion in the left apex."),
    ("Lung/hyperdistention", "The lungs are hyperexpanded."),
    ("Lung/hypoinflation", "Low lung volumes."),
    ("Lung, Hyperlucent", "Hyperlucent lungs."),
    ("Foreign Bodies/abdomen", "Metallic foreign body in the abdomen."),
    ("Thickening/pleura/apex/bilateral", "Biapical pleural thickening."),
    ("Markings/lung/interstitial/prominent", "Prominent interstitial markings."),
    ("Markings/bronchovascular", "Crowded bronchovascular markings."),
    ("Nipple Shadow/left", "A left nipple shadow."),
    ("Lymph Nodes/mediastinum/enlarged", "Enlarged mediastinal lymph nodes."),
    ("Arthritis/shoulder/bilateral", "Arthritic changes of both shoulders."),
    ("Subcutaneous Emphysema/thorax/left", "Subcutaneous air in the left chest wall."),
    ("Pneumoperitoneum", "Free air under the diaphragm."),
    ("Mediastinal Emphysema", "Pneumomediastinum."),
    ("Azygos Lobe", "An azygos fissure is noted."),
    ("Contrast Media/abdomen", "Residual contrast in the colon."),
    ("Volume Loss/lung/lower lobe", "Loss of volume of the right lower lobe."),
    ("Pulmonary Atelectasis/base/bilateral", "Bibasilar subsegmental atelectasis."),
    ("Tuberculosis", "Sequelae of old TB."),
    ("Sarcoidosis", "Known sarcoid."),
    ("Heart Failure", "Congestive heart failure."),
    ("Pulmonary Congestion/mild", "Mild pulmonary vascular congestion."),
    ("Pulmonary Edema/interstitial", "Interstitial edema."),
    ("Opacity/lung/base/left/streaky", "Streaky opacity in the left base."),
    ("Infiltrate/lung/lower lobe", "Right lower lobe infiltrate."),
    ("Airspace Disease/lung", "Patchy airspace disease."),
    ("Density/retrocardiac", "Increased retrocardiac density."),
    ("Consolidation/lung", "Dense consolidation."),
    ("Pneumonia/lung", "Lobar pneumonia."),
    ("Nodule/lung/multiple", "Multiple pulmonary nodules."),
    ("Mass/lung/hilum", "Left hilar mass."),
    ("Pleural Effusion/right/small", "Small right effusion."),
    ("Pneumothorax/right/apex", "Tiny apical pneumothorax."),
    ("Mediastinum/enlarged", "Widening of the superior mediastinum."),
    ("Pulmonary Artery/enlarged", "The pulmonary arteries are enlarged."),
    ("Lymphatic Diseases/mediastinum", "Mediastinal adenopathy."),
    ("Hyperostosis, Diffuse Idiopathic Skeletal", "Findings of DISH."),
    ("Sclerosis/humerus", "Sclerosis of the humeral head."),
    ("Colonic Interposition", "Colonic interposition under the right diaphragm."),
    ("Adipose Tissue/epicardial", "A prominent epicardial fat pad."),
    ("Blood Vessels/prominent", "Pulmonary vessels are prominent."),
    ("Funnel Chest", "Pectus excavatum."),
    ("Dislocations/shoulder", "Shoulder dislocation."),
    ("Hydropneumothorax", "Left hydropneumothorax."),
    ("Bronchitis", "Bronchitic changes."),
    ("Lucency/lung", "A focal lucency."),
    ("Pleural Diseases", "Pleural plaques."),
    ("Trachea, Carina/splayed", "The trachea is deviated."),
    ("Coronary Artery Bypass", "Status post CABG."),
    ("Spinal Fusion/cervical vertebrae", "Anterior cervical fusion hardware."),
    ("normal", "Normal chest."),
]  # fmt: skip


@pytest.mark.parametrize(("tag", "text"), TAGGED, ids=[tag for tag, _ in TAGGED])
def test_headings(tag, text):
    entries = {entry.name for entry in with_heading(default_lexicon(), tag)}
    assert entries & set(names(text)), (entries, names(text))


def test_qualifiers_separate_headings():
    lexicon = default_lexicon()

    def found(tag):
        return {entry.name for entry in with_heading(lexicon, tag)}

    assert "Low Lung Volumes" in found("LUNG/Hypoinflation/mild")
    assert "Hyperinflation" not in found("Lung/hypoinflation")
    assert {"Low Lung Volumes", "Hyperinflation"} <= found("lung")
    assert found("no such heading") == set()


def test_own_files(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "misspelt: [kartagener]\n"
        "entries:\n"
        "  - {name: Kartagener, class: Other, mesh: [Kartagener Syndrome], terms: [kartagener*]}\n"
        "  - {name: Cardiomegaly, class: Cardiomegaly, terms: ['ox heart', 'cor bovinum']}\n"
    )
    lexicon = load_lexicon(own)
    text = "Kartegener syndrome. Cor bovinum. No pneumothorax."
    assert names(text, lexicon) == ["Kartagener", "Cardiomegaly", "Pneumothorax"]
    assert names(text) == ["Pneumothorax"]
    assert "Cardiac Shadow" in lexicon["Cardiomegaly"].mesh
    only = load_lexicon(own, default=False)
    assert len(only) == 2
    assert names(text, only) == ["Kartagener", "Cardiomegaly"]
    assert [e.name for e in with_heading(lexicon, "kartagener syndrome")] == ["Kartagener"]


def test_own_terms_win_over_built_in_ones(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("entries:\n  - {name: Puddle, class: Other, terms: [large pleural effusion]}\n")
    assert names("large pleural effusion", load_lexicon(own)) == ["Puddle"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("entries: [", "not a readable YAML"),
        ("- a", "list named `entries`"),
        ("entries: 3", "list named `entries`"),
        ("entries: []\nterms: []", "unknown key 'terms'"),
        ("entries: [5]", "entry 1 is 5, want a mapping"),
        ("entries: [{terms: [a]}]", "`name` is missing"),
        ("entries: [{name: X}]", r"entry 1 \(X\): `terms` is None, want a list"),
        ("entries: [{name: X, terms: []}]", "`terms` is .*, want a list"),
        ("entries: [{name: X, terms: [no]}]", "quote them"),
        ("entries: [{name: X, terms: a}]", "`terms` is .*, want a list"),
        ("entries: [{name: X, terms: ['a (b']}]", r"X\): lexicon term"),
        ("entries: [{name: X, class: Heart, terms: [a]}]", "class is 'Heart', want 'Other' or"),
        ("entries: [{name: X, colour: red, terms: [a]}]", "unknown key 'colour'"),
        ("entries: [{name: X, mesh: Heart, terms: [a]}]", "`mesh` is .*, want a list"),
        ("entries: [{name: X, normal: perhaps, terms: [a]}]", "true or false"),
        ("entries: [{name: Edema, class: Other, terms: [a]}]", "one name has one class"),
        ("misspelt: [short]\nentries: []", "`misspelt` is .*, want a list"),
    ],
)
def test_malformed_files_are_named(tmp_path, content, message):
    own = tmp_path / "own.yaml"
    own.write_text(content)
    with pytest.raises(DiveError, match=message) as caught:
        load_lexicon(own)
    assert "own.yaml" in str(caught.value)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(DiveError, match=r"nowhere\.yaml"):
        load_lexicon(tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DiveError, match=r"bytes\.yaml"):
        load_lexicon(tmp_path / "bytes.yaml")
    with pytest.raises(DiveError, match="at least one file"):
        load_lexicon(default=False)
    with pytest.raises(DiveError, match="no entry 'Nothing'"):
        default_lexicon()["Nothing"]


# what the lexicon may call each concept of the embedded world
CONCEPTS = {
    "cardiomegaly": {"Cardiomegaly"},
    "effusion": {"Pleural Effusion"},
    "pneumothorax": {"Pneumothorax"},
    "consolidation": {"Consolidation", "Lung Opacity", "Pneumonia"},
    "edema": {"Edema"},
    "nodule": {"Lung Lesion"},
    "line": {"Support Devices"},
}


def test_the_embedded_world_is_read_as_drawn():
    """Over 600 reports of as many hospitals: stated concepts as drawn, all others absent."""
    rng = np.random.default_rng(5)
    labels = draw_labels(600, rng)
    agree = total = 0
    wrong_negatives = []
    for row in labels:
        style = draw_style(rng)
        text = write_report(style, row)
        drawn = {FINDINGS[i][0] for i in np.flatnonzero(row)}
        mentions = find_mentions(text)
        for concept, classes in CONCEPTS.items():
            polarity = {m.polarity for m in mentions if m.cls in classes}
            total += 1
            agree += ("positive" in polarity) == (concept in drawn)
            if concept not in drawn and polarity != {"negative"}:
                wrong_negatives.append((concept, polarity, text))
    assert agree >= 0.98 * total
    assert len(wrong_negatives) <= 0.02 * total, wrong_negatives[:3]


def test_fast_enough_for_whole_datasets():
    """The goal is 2,000 reports of 60 words per second on a quiet core; a busy one takes longer."""
    sentence = (
        "The heart is mildly enlarged. No focal consolidation, pleural effusion or pneumothorax. "
        "Streaky opacity at the left base may represent atelectasis versus pneumonia. "
    )
    reports = [f"{sentence * 2} Report {i}: stable calcified granuloma." for i in range(300)]
    find_mentions(reports[0])
    start = time.process_time()
    for report in reports:
        find_mentions(report)
    assert len(reports) / (time.process_time() - start) > 500


@pytest.mark.parametrize("part", ["No effusion, nodule, ", "No effusion. Nodule. ", "heart is "])
def test_time_is_linear_in_length(part):
    def seconds(count):  # the least of three: garbage collection may fall into one
        times = []
        for _ in range(3):
            start = time.process_time()
            find_mentions(part * count)
            times.append(time.process_time() - start)
        return min(times)

    seconds(10)
    # ten times as long may take ten times as long, not a hundred times
    assert seconds(5000) < 40 * max(seconds(500), 0.005)


def test_its_version_names_release_and_content():
    assert re.fullmatch(rf"{re.escape(dive.__version__)} [0-9a-f]{{8}}", lexicon_version())
    found = dive.evaluate(["Effusion."], ["Effusion."], ["findings"])
    assert all(
        f"the lexicon of dive {lexicon_version()}" in found["variants"][name]
        for name in ("finding_f1", "finding_state_f1")
    )
