"""The span of a finding together with its modifiers."""

import re

import pytest

from dive.decisive.tokens import DecisiveTokens
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


def test_decisive_tokens_weigh_modifiers_with_their_finding():
    text = "No pneumothorax. Small left pleural effusion at the base."
    offsets = [(m.start(), m.end()) for m in re.finditer(r"\w+", text)]
    plain, wide = (
        DecisiveTokens(None, modifiers=modifiers).label(text, offsets, len(offsets) + 1)
        for modifiers in (False, True)
    )
    assert plain == [0, 0, 0, 0, 1, 1, 0, 0, 0, 2]
    assert wide == [0, 0, 1, 1, 1, 1, 1, 1, 1, 2]
