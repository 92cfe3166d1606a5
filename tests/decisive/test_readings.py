"""Texts in the manner of many hospitals, with the polarity of the findings that they name.

Wrapped and unwrapped lines, exports, abbreviations, recommendations, parts of devices, and
answers to headings.
"""

import time

import pytest

from dive.decisive.mentions import find_mentions

CLASSES = {
    "E": "Pleural Effusion", "P": "Pneumonia", "C": "Consolidation", "X": "Pneumothorax",
    "A": "Atelectasis", "M": "Cardiomegaly", "O": "Lung Opacity", "F": "Fracture", "D": "Edema",
    "S": "Support Devices", "L": "Lung Lesion", "N": "No Finding",
}  # fmt: skip
SIGNS = {"+": "positive", "-": "negative", "?": "uncertain"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Lungs: No  effusion.", "E-"),
        ("Impression: <b>No</b> pneumonia.", "P-"),
        ("Impression:&nbsp;No&nbsp;pneumonia", "P-"),
        ("Lungs: No <i>focal</i> consolidation", "C-"),
        ("Lungs: no<br>effusion", "E-"),
        ("LUNGS:\tNo\tconsolidation", "C-"),
        ("FINDINGS:  No  focal consolidation, effusion or pneumothorax.", "C- E- X-"),
        ("Pleura: [No] effusion", "E-"),
        ("Pleura: (no) effusion", "E-"),
        ("Impression: Possible <b>pneumonia</b>", "P?"),
        ("Impression: Likely  pneumonia.", "P?"),
        ("Impression: Probable\npneumonia in the base", "P?"),
        ("IMPRESSION: No\npneumothorax.", "X-"),
        (
            "The lungs are well seen with ribs and spine all shown. Pleura: No\n"
            "effusion or pneumothorax.",
            "E- X-",
        ),
        ("Left effusion with adjacent atelectasis (no\npneumothorax).", "E+ A+ X-"),
        ("Lungs: small right effusion, no\nconsolidation.", "E+ C-"),
        (
            "No focal consolidation, pleural effusion or pneumothorax\nMild cardiomegaly",
            "C- E- X- M+",
        ),
        (
            "No focal consolidation, pleural effusion or pneumothorax seen today\n"
            "The heart is enlarged",
            "C- E- X- M+",
        ),
        ("Findings:\nno effusion\ncardiomegaly", "E- M+"),
        ("IMPRESSION:\nno effusion\nright lower lobe pneumonia", "E- P+"),
        ("No pneumothorax\nsmall left effusion\ncardiomegaly", "X- E+ M+"),
        ("possible pneumonia\ncardiomegaly\nImpression", "P? M+"),
        (
            "Bibasilar airspace opacities, small right pleural effusion present\n"
            "Absent pneumothorax",
            "O+ E+ X-",
        ),
        (
            "Positive findings: RLL consolidation, small effusion\n"
            "Negative findings: pneumothorax, fracture",
            "C+ E+ X- F-",
        ),
        ("Impression: ?pneumonia", "P?"),
        ("Impression:\n? Right basal pneumonia", "P?"),
        ("Conclusion: ?LVF", "D?"),
        ("Pleura: ? small effusion", "E?"),
        ("Opacity RLZ - ?pneumonia", "O+ P?"),
        ("Opacity (?pneumonia)", "O+ P?"),
        ("Opacity: ?pneumonia", "O+ P?"),
        ("Opacity [?pneumonia]", "O+ P?"),
        ("Opacity ? pneumonia", "O+ P?"),
        ("Patchy opacity LLZ ? infective", "O+ P?"),
        ("Heart enlarged ? early failure.", "M+ D?"),
        ("No rt. effusion.", "E-"),
        ("No sig. effusion.", "E-"),
        ("No bilat. effusions", "E-"),
        ("No evid. of pneumothorax", "X-"),
        ("w/o evid. of edema", "D-"),
        ("Neg. for ptx", "X-"),
        ("No lt. pleural effusion or pneumothorax.", "E- X-"),
        ("Poss. pneumonia", "P?"),
        ("Prob. atelectasis", "A?"),
        ("Ptx neg. Effusion small.", "X- E+"),
        ("NG tube in stomach, tip not seen.", "S+"),
        ("The right PICC tip is not clearly seen.", "S+"),
        ("The side port of the NG tube is not seen.", "S+ S+"),
        ("Right effusion, left hemidiaphragm not seen.", "E+"),
        ("Cardiomegaly, aortic knob not seen", "M+"),
        ("Consolidation, right heart border not visible", "C+"),
        ("Removal of ET tube and placement of tracheostomy.", "S- S+"),
        ("Removal of the ET tube and insertion of a left PICC", "S- S+"),
        ("Removal of chest tube and development of a small pneumothorax", "S- X+"),
        ("Resolution of the right effusion and increase in the left effusion", "E- E+"),
        ("Removal of right IJ line and new left effusion", "S- E+"),
        ("Interval removal of the endotracheal and nasogastric tubes.", "S-"),
        ("Nodule: no follow-up needed.", "L+"),
        ("Right nodule - no follow-up needed", "L+"),
        ("Effusion: no treatment needed", "E+"),
        ("Left pneumothorax - no tension", "X+"),
        ("Left pneumothorax – not under tension", "X+"),
        ("Pneumothorax: small apical, no tension", "X+"),
        ("Effusion: not large", "E+"),
        ("Effusion - right: large", "E+"),
        ("Consolidation - left: yes", "C+"),
        ("Effusion - left: small. Pneumothorax - right: large.", "E+ X+"),
        ("Pneumothorax:\r\nNo\r\nEffusion:\r\nYes\r\n", "X- E+"),
        ("Is there a pneumothorax?\r\nNo\r\nEffusion?\r\nYes", "X- E+"),
        ("Effusion:\r\nPneumothorax: No", "X-"),
        ("Right nodule, consider CT.", "L+"),
        ("Right effusion, consider thoracentesis.", "E+"),
        ("Cardiomegaly, consider echo", "M+"),
        ("Consider pneumonia.", "P?"),
        ("Edema: Normal vascularity.", "D- N-"),
        ("Cardiomegaly: The heart is normal in size.", "M- N-"),
        ("Consolidation: The lungs are clear.", "C- N-"),
        ("Fractures: The bones are intact.", "F- N-"),
        ("Cardiomegaly: normal", "M- N-"),
        ("Effusion seen, pneumothorax not seen.", "E+ X-"),
        ("Fracture of rib no. 5.", "F+"),
        ("Right pleural effusion - likely parapneumonic.", "E+"),
        ("Effusion: right none, left small", "E+"),
        ("PTX: R no, L small", "X+"),
        ("Pneumothorax: none on right, small on left", "X+"),
        ("Left pneumothorax (tension: no)", "X+"),
        ("Left effusion - loculated: no", "E+"),
        ("Fracture, displaced: no", "F+"),
        ("Left effusion (urgent: no)", "E+"),
        ("Left effusion [critical: no]", "E+"),
        ("Effusion, contrast: none", "E+"),
        ("Cardiomegaly, change since prior: none", "M+"),
        ("Pneumothorax: Yes [ ] No [x]", "X-"),
        ("Pneumothorax: Yes ☐ No ☑", "X-"),
        ("Pneumothorax: YES/NO", ""),
        ("Pneumothorax (Y/N):", ""),
        ("Pneumothorax: Yes/No: No", "X-"),
        ("Pneumothorax Y/N? N", "X-"),
        ("[N] Pneumothorax [Y] Effusion [N] Fracture", "X- E+ F-"),
        ('"Pneumothorax";"No"\n"Effusion";"Yes"', "X- E+"),
        ('"Pneumothorax","No"\r\n"Effusion","Yes"', "X- E+"),
        ("Cardiomegaly: 0.0", "M-"),
        ("Edema: -1.0", "D?"),
        ("Effusion: -1", "E?"),
        ("Effusion: 1.0", "E+"),
        ("Pneumothorax: 0%", "X-"),
        ("Pneumothorax   0 mm", "X-"),
        ("Consolidation\nNo\nEffusion\nYes\nPneumothorax\nNo", "C- E+ X-"),
        ("-PTX -effusion +cardiomegaly", "X- E- M+"),
        ("+ effusion, - pneumothorax", "E+ X-"),
        ("Ø PTX", "X-"),
        ("∅ pneumothorax", "X-"),
        ("s/o consolidation", "C?"),
        ("Neither the right effusion nor the left atelectasis has changed.", "E+ A+"),
        ("The opacity is not new and was seen on CT.", "O+"),
        ("The opacity is more in keeping with atelectasis than pneumonia.", "O+ A+ P?"),
        ("LRTI", "P+"),
        ("RLL consol", "C+"),
        ("Spinal fusion hardware is intact.", "N-"),
        ("Small volume left pleural fluid.", "E+"),
        ("Fractures may not be demonstrated on this film.", "F?"),
    ],
)
def test_readings(text, wanted):
    """ "E- X+": an effusion is denied, a pneumothorax is present; in the text's order."""
    got = [(m.cls, m.polarity) for m in find_mentions(text) if m.cls != "Other"]
    assert got == [(CLASSES[one[0]], SIGNS[one[1]]) for one in wanted.split()]


@pytest.mark.parametrize("filling", [" ", "\t", "=", "|", ".", "-", "_"])
def test_long_runs_of_one_mark_take_no_time(filling):
    """Fields of a fixed width, and tags that were blanked."""
    find_mentions("No effusion.")  # the lexicon is compiled on first use
    start = time.process_time()
    find_mentions("Small left effusion. Pneumothorax:" + filling * 20_000 + "no")
    assert time.process_time() - start < 1
