"""Scores on the page: a name in words for each, its unit, and which direction is better."""

import pytest

from dive.metrics import chexbert
from dive.page.metric_labels import metric


@pytest.mark.parametrize(
    "key, label, better, unit",
    [
        ("bleu4", "BLEU-4", "higher", "fraction"),
        ("radcliq", "RadCliQ-v1", "lower", "ratio"),
        ("radcliq_inverse", "1/RadCliQ-v1", "higher", "ratio"),
        ("length_ratio", "length ratio", "near 1", "ratio"),
        ("chexbert14_macro_f1", "CheXbert 14 macro F1", "higher", "fraction"),
        (
            "chexbert5_micro_f1_uncertain_negative",
            "CheXbert 5 micro F1, uncertain negative",
            "higher",
            "fraction",
        ),
        ("mine", "mine", "higher", "fraction"),
    ],
)
def test_a_score(key, label, better, unit):
    assert metric(key, "a variant") == {
        "key": key, "label": label, "variant": "a variant", "better": better, "unit": unit,
    }  # fmt: skip


def test_every_score_of_chexbert_has_words_of_its_own():
    labels = [metric(name, "")["label"] for name, *_ in chexbert._names()]
    assert len({*labels}) == len(labels) == 8 and not any("_" in label for label in labels)
