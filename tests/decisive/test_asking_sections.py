"""Sections with a question or a history: where they begin, and where the findings do."""

import pytest

from dive.decisive.asking_sections import asking_sections
from dive.decisive.mentions import find_mentions

HEADINGS = [
    "Indication:", "INDICATION:", "Indication :", "Indications:", "Indication(s):", "NDICATION:",
    "INDICATION;", "**Indication:**", "**Indication**:", "__Indication__:", "## Indication\n",
    "Indication\n\n", "[Indication]", "| Indication |", "Indication\t", "1. Indication:",
    "Indication -", "Indication \u2013", "<p><b>INDICATION</b></p><p>", "<h3>Indication</h3>",
    "<tr><td>Indication</td><td>", "INDICATION\n", "INDICATION/HISTORY:", "Exam indication:",
    "Indication for Exam:", "Clinical indication:", "Clinical indication -", "Clinical notes:",
    "Clinical request:", "Clinical information:", "Clinical question:", "Clinical Hx:",
    "Clinical Hx.:", "Clinical\xa0history:", "CLINICAL HISOTRY:", "Provided history:", "PMH:",
    "Past medical history:", "Patient's history:", "Hx:", "Hx.", "C/O", "C/O:", "R/O:", "Rule out:",
    "Presenting complaint:", "Chief complaint:", "Reason for study:", "Reason for this exam:",
    "Symptoms:", "Signs and symptoms:", "Referral:", "Request:", "Query:", "Admitting diagnosis:",
    "Comparison:", "Comparison: CT of 3/4 with", "Technique/Comparison:", "Prior studies:",
]  # fmt: skip
BELOW = ["\nFindings: Right effusion.", "\n\nFINDINGS:\n\nRight effusion.",
         "\n\n**Findings**\nRight effusion.", ". FINDINGS: Right effusion.",
         " Impression: Right effusion."]  # fmt: skip


def said(text: str) -> list[tuple[str, str]]:
    return [(one.name, one.polarity) for one in find_mentions(text)]


@pytest.mark.parametrize("heading", HEADINGS)
@pytest.mark.parametrize("below", BELOW)
def test_headings(heading: str, below: str) -> None:
    assert said(f"{heading} pneumonia{below}") == [
        ("Pneumonia", "uncertain"),
        ("Pleural Effusion", "positive"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "HISTORY: Cough.\n\nTwo views of the chest show right effusion.",
        "HISTORY: Cough.\nTwo views of the chest show right effusion.",
        "HISTORY: Cough. PA and lateral views of the chest demonstrate right effusion.",
        "HISTORY: Cough.\r\n\r\nRight effusion.",
        "HISTORY: Cough. There is a right effusion.",
        "Indication: Cough. Right effusion is present.",
        "INDICATION: fever, cough, chills, and weight loss\nThe right lung shows effusion.",
        "Indication: fever.\nLungs: Right effusion.",
        "Hx: cough. Pleura: Right effusion.",
        "Hx: Cough. CXR: Right effusion.",
        "Hx. cough. Right effusion.",
        "REASON FOR EXAMINATION: Cough.\n \n Portable AP radiograph of the chest was reviewed in"
        "\n comparison to ___.\n \n There is a small right effusion.",
        "COMPARISON: Chest x-ray from yesterday.\nRight effusion is present.",
        "COMPARISON:  Radiographs from ___ and\n ___.  CT torso from ___.\n\n Right effusion.",
        "COMPARISON: None.\n\nThe lungs show right effusion.",
        "COMPARISON:\n\nThere is a right effusion.",
        "Comparison: XXXX. Right effusion.",
        "INDICATION: Cough.\n\nExam: Chest.\n\nRight effusion.",
        "INDICATION:\n\nCough.\n\nRight effusion.",
        "Reason for exam: cough\n ____________________\n FINAL REPORT\n Right effusion.",
        "Comparison is made with prior studies: right effusion is larger.",
        "IMPRESSION: compared with prior: larger effusion.",
        "CHEST 2 VIEWS: 3/4/2001\nCLINICAL HISTORY: 50 years of age, cough.\nCOMPARISON: 3/3/2001"
        "\nPROCEDURE COMMENTS: AP chest.\nFINDINGS: Right effusion.",
        '{"indication": "cough", "findings": "right effusion"}',
    ],
)
def test_findings_without_a_heading(text: str) -> None:
    assert said(text) == [("Pleural Effusion", "positive")]


@pytest.mark.parametrize(
    "text",
    [
        "INDICATION: ___ year old man with fever and cough and weight loss, now\n effusion.",
        "HISTORY: Cough.\n\nEffusion.\n\nFINDINGS: Clear.",
        "HISTORY:\n\nEffusion.\n\nThe lungs are clear.",
        "HISTORY: Cough. There is concern for effusion.",
        "INDICATION:  History: ___M with chest pain  // effusion?",
        "Clinical history:\nEffusion: yes\nSmoker: no\n\nFindings: Clear.",
        "COMPARISON: CT of ___.\n CT torso from ___ showing effusion.\n\n FINDINGS: Clear.",
    ],
)
def test_what_is_still_of_the_history(text: str) -> None:
    assert [one for one in said(text) if one[0] == "Pleural Effusion"] == [
        ("Pleural Effusion", "uncertain")
    ]


def test_what_a_history_denies_is_absent() -> None:
    assert said("Reason for exam: s/p chest tube removal") == [("Tube or Drain", "negative")]
    assert said("Indication: no pneumonia on CT") == [("Pneumonia", "negative")]


def test_the_characters_of_sections() -> None:
    text = "INDICATION: Cough.\nCOMPARISON: None. FINDINGS: Clear."
    assert [text[a:b] for a, b in asking_sections(text)] == ["Cough.\n", "None. "]
    assert asking_sections("Right effusion. Pneumonia.") == []
    assert asking_sections("") == []
