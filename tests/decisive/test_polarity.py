"""Mentions and their polarity, on reports written for these tests and by rule."""

import pytest
from marked_reports import marked_reports, read_marked

from dive.decisive.mentions import find_mentions


def polarity_of(text: str, name: str) -> list[str]:
    return [m.polarity for m in find_mentions(text) if m.name == name]


def test_there_are_enough_reports():
    assert len(marked_reports()) >= 150


@pytest.mark.parametrize("marked", marked_reports(), ids=lambda r: r[:40])
def test_marked_reports(marked):
    text, wanted = read_marked(marked.rstrip("\n"))
    got = [(m.spans, m.polarity, m.name) for m in find_mentions(text)]
    assert sorted(got) == sorted(wanted)


@pytest.mark.parametrize("marked", [r for r in marked_reports() if "XXXX" not in r][::3])
def test_case_and_wrapping_change_nothing(marked):
    """All capitals, and single spaces of long lines turned into line breaks."""
    text, _ = read_marked(marked.rstrip("\n"))
    names = [(m.name, m.polarity) for m in find_mentions(text)]
    assert [(m.name, m.polarity) for m in find_mentions(text.lower())] == names
    if "\n" not in text:
        assert [(m.name, m.polarity) for m in find_mentions(text.upper())] == names
        lines, start = [], 0
        while len(text) - start > 76 and (cut := text.rfind(" ", start + 52, start + 76)) > 0:
            lines.append(text[start:cut])
            start = cut + 1
        wrapped = "\n ".join([*lines, text[start:]])
        assert [(m.name, m.polarity) for m in find_mentions(wrapped)] == names


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("No ", "."),
        ("There is no ", "."),
        ("There is no evidence of ", "."),
        ("No definite evidence of ", " is seen."),
        ("Without ", "."),
        ("Negative for ", "."),
        ("The lungs are free of ", "."),
        ("Interval resolution of the right ", "."),
        ("", " is not seen."),
        ("", " has resolved."),
        ("", " is absent."),
        ("", ": none."),
        ("", " is no longer visualized."),
        ("No fracture, ", " or other finding."),
        ("Neither fracture nor ", " is present."),
        ("I do not see any ", "."),
        ("NO FOCAL ", "."),
        ("No XXXX ", "."),
        ("No ___ ", "."),
        ("w/o ", ""),
    ],
)
@pytest.mark.parametrize("finding", ["pneumothorax", "consolidation", "effusion", "pneumonia"])
def test_absent(before, after, finding):
    name = {"effusion": "Pleural Effusion"}.get(finding, finding.capitalize())
    assert polarity_of(before + finding + after, name) == ["negative"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "."),
        ("There is a small ", "."),
        ("No change in the ", "."),
        ("No significant interval change in ", "."),
        ("Not only ", "."),
        ("No fracture but there is ", "."),
        ("No fracture; ", " at the left base."),
        ("No fracture, stable ", "."),
        ("No fracture. ", " is seen."),
        ("1. No fracture\n2. ", ""),
        ("Near complete resolution of ", "."),
        ("", " has not resolved."),
        ("", ", unchanged."),
        ("No. 2 finding: ", "."),
        ("Dr. Roe saw ", "."),
        ("Persistent ", " without fracture."),
        ("", ": present."),
        ("", " has decreased, and no fracture is seen."),
        ("There is a ", ", not seen on the prior radiograph."),
        ("New ", " which was not present on the previous exam."),
        ("", " that was not identified on the most recent comparison study."),
        ("The ", " has improved but not resolved."),
        ("The ", " has decreased but has not disappeared."),
        ("No further increase in the known ", "."),
        ("Mild ", ", possibly chronic."),
        ("", ", likely old."),
        ("No fracture. Comparison: none. There is a ", "."),
        ("Comparison: film of 5/6/2020. Small ", "."),
        ("COMPARISON: 5/6/2020.\n\nSmall ", "."),
    ],
)
@pytest.mark.parametrize("finding", ["pneumothorax", "consolidation", "effusion"])
def test_present(before, after, finding):
    name = {"effusion": "Pleural Effusion"}.get(finding, finding.capitalize())
    assert polarity_of(before + finding + after, name) == ["positive"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Possible ", "."),
        ("Probable small ", "."),
        ("Opacity which may represent ", "."),
        ("Cannot exclude ", "."),
        ("Fracture versus ", "."),
        ("Questionable ", "."),
        ("Suspicious for ", "."),
        ("? ", ""),
        ("?", ""),
        ("", " cannot be excluded."),
        ("", " is possible."),
        ("", " versus fracture."),
        ("", " is not excluded."),
        ("", ": possible."),
        ("Evaluate for ", "."),
        ("Indication: ", "."),
        ("Although ", " cannot be entirely excluded, no fracture is seen."),
        ("Heart size is normal. ? RLL ", "."),
        ("Low volumes.\n? early ", "\nLine in place."),
        ("Bones are normal. (? ", ")"),
        ("Possibly acute ", "."),
        ("A small ", " is difficult to exclude."),
        ("COMPARISON: film with ", ".\n\nNo fracture."),
        ("Heart is large. Comparison: an earlier film with ", ". No fracture."),
    ],
)
@pytest.mark.parametrize("finding", ["pneumothorax", "consolidation", "effusion"])
def test_uncertain(before, after, finding):
    name = {"effusion": "Pleural Effusion"}.get(finding, finding.capitalize())
    assert polarity_of(before + finding + after, name) == ["uncertain"]


@pytest.mark.parametrize(
    "text",
    [
        "The lungs are clear.",
        "Lungs: clear",
        "Heart size is normal.",
        "Normal heart size.",
        "No acute abnormality.",
        "No acute cardiopulmonary process.",
        "No evidence of active disease",
        "Unremarkable study.",
        "Cardiomediastinal silhouette within normal limits.",
        "Nothing acute.",
    ],
)
def test_all_is_well(text):
    assert {(m.cls, m.polarity) for m in find_mentions(text)} == {("No Finding", "negative")}


def test_not_normal_is_a_finding():
    assert [m.polarity for m in find_mentions("The chest is not normal.")] == ["positive"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Removal of left chest tube with no residual effusion.", ["negative", "negative"]),
        ("Removal of drain, with no residual pneumothorax or collapse.", ["negative"] * 3),
        ("The effusion was drained, with no residual.", ["negative"]),
        ("Left lower lobe collapse has re-expanded.", ["negative"]),
        ("The pneumothorax has now reexpanded.", ["negative"]),
        ("Pulmonary vascular engorgement appears within limits of normal.", ["negative"] * 2),
        (
            "There is cardiomegaly, and the effusion appears within normal limits.",
            ["positive"] + ["negative"] * 2,
        ),
        ("Central line has been withdrawn.", ["negative"]),
        ("Central line has been pulled back by 3 cm.", ["positive"]),
        ("PICC line has been withdrawn and now ends in the axilla.", ["positive"]),
        ("Nodule is not visible on the lateral view.", ["negative"]),
        ("No effusion? Possible.", ["negative"]),
        ("Was there an effusion?? No fracture.", ["uncertain", "negative"]),
        ("No effusion, mass, mediastinal adenopathy or rib fracture.", ["negative"] * 4),
        (
            "No effusion, suspicious nodule, mass, osseous lesion, or rib fracture.",
            ["negative"] * 5,
        ),
        ("No effusion, cardiac enlargement.", ["negative", "positive"]),
        ("No effusion, thoracic scoliosis is mild.", ["negative", "positive"]),
    ],
)
def test_forms_that_a_second_reader_used(text, wanted):
    """Found on second_reader.yaml, a development set since; with other words here."""
    assert [m.polarity for m in find_mentions(text)] == wanted


def test_long_lists():
    items = ["pneumothorax", "effusion", "consolidation", "edema", "nodule", "fracture"]
    for last in ("or", "and", "nor"):
        text = f"There is no {', '.join(items[:-1])}, {last} {items[-1]}. Cardiomegaly."
        assert [m.polarity for m in find_mentions(text)] == ["negative"] * 6 + ["positive"]
