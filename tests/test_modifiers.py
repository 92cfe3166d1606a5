"""How far a finding's span reaches when its modifiers belong to it."""

import pytest

from dive.lexicon.modifiers import widen


@pytest.mark.parametrize(
    ("text", "finding", "wanted"),
    [
        (
            "There is a small left pleural effusion.",
            "pleural effusion",
            "small left pleural effusion",
        ),
        (
            "effusion at the left of mild degree. Heart",
            "effusion",
            "effusion at the left of mild degree",
        ),
        ("Opacity in the right lower lobe, stable.", "Opacity", "Opacity in the right lower lobe"),
        ("left-sided moderate effusion is seen", "effusion", "left-sided moderate effusion"),
        ("The heart shows mild enlargement", "enlargement", "mild enlargement"),
        ("Normal. Effusion on the left", "Effusion", "Effusion on the left"),
        ("A 4 mm nodule in the patient", "nodule", "4 mm nodule"),
        ("pneumothorax of the", "pneumothorax", "pneumothorax"),
        ("clear left. effusion right", "effusion", "effusion right"),
        ("SMALL BILATERAL EFFUSIONS", "EFFUSIONS", "SMALL BILATERAL EFFUSIONS"),
        ("effusion", "effusion", "effusion"),
    ],
)
def test_modifiers_join_their_finding(text, finding, wanted):
    start = text.index(finding)
    first, last = widen(text, start, start + len(finding))
    assert text[first:last] == wanted
