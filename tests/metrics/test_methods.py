"""Several methods against the same references: as each alone, and each text read once."""

from collections import Counter

import pytest

import dive
from dive.decisive import mentions
from dive.errors import DiveError

REFERENCES = ["Small left effusion.", "nan", "No pneumothorax.", "Mild cardiomegaly. Clear lungs."]
METHODS = {
    "good": ["Small left effusion.", "x", "No pneumothorax.", "Mild cardiomegaly."],
    "bad": ["Large right effusion.", "x", "", "N/A"],
    "other": ["Pneumothorax.", "x", "No pneumothorax.", "Clear lungs."],
}
METRICS = ("bleu", "rougeL", "findings", "sentence_bleu")
ENDS = {"good": ["eos"] * 4, "bad": ["length", "eos", "eos", "eos"], "other": None}
OPTIONS = {"patients": ["a", "b", "b", "c"], "bootstrap": 40, "seed": 3, "normalization": "raw"}


def test_each_has_what_evaluate_gives_alone():
    found = dive.evaluate_methods(
        METHODS, REFERENCES, METRICS, baseline="good", finish_reasons=ENDS, per_report=True,
        **OPTIONS,
    )  # fmt: skip
    assert list(found) == list(METHODS)
    for name, reports in METHODS.items():
        alone = dive.evaluate(
            reports, REFERENCES, METRICS, finish_reasons=ENDS[name], per_report=True,
            baseline=None if name == "good" else METHODS["good"], **OPTIONS,
        )  # fmt: skip
        own = found[name]
        empty = own.pop("placeholders"), alone.pop("placeholders")
        assert own == alone, name
        # under the name of the method, which `evaluate` does not know
        assert empty[0].get(f"predictions of {name}", 0) == empty[1].get("predictions", 0)
        assert empty[0]["references"] == empty[1]["references"] == 1
    assert found["bad"]["bootstrap"]["unit"] == "patient"
    assert "differences" not in found["good"] and "differences" in found["bad"]


def test_without_a_baseline_there_are_no_differences():
    found = dive.evaluate_methods(METHODS, REFERENCES, ("rougeL",))
    assert not any("differences" in own or "intervals" in own for own in found.values())


def test_every_text_is_read_once(monkeypatch):
    read = Counter()
    reader = mentions.find_mentions

    def counted(text, *more):
        read[text] += 1
        return reader(text, *more)

    monkeypatch.setattr(mentions, "find_mentions", counted)
    dive.evaluate_methods(METHODS, REFERENCES, ("findings",), baseline="bad", bootstrap=5)
    assert set(read.values()) == {1}
    assert "Large right effusion." in read


def test_placeholders_are_counted_whatever_a_method_is_named():
    methods = {name: METHODS["bad"] for name in ("references", "lora", "lora of seed 1")}
    methods["lora"] = METHODS["good"]
    found = dive.evaluate_methods(methods, REFERENCES, ("rougeL",))
    assert [own["placeholders"] for own in found.values()] == [
        {"references": 1, "predictions of references": 1},
        {"references": 1},
        {"references": 1, "predictions of lora of seed 1": 1},
    ]


@pytest.mark.parametrize(
    "methods, more, message",
    [
        ({}, {}, "methods are empty, want one or more"),
        (METHODS, {"baseline": "none"}, "baseline is 'none', want one of 'good', 'bad', 'other'"),
        ({"short": ["x"]}, {}, "predictions of short: 1 for 4 references, want one per reference"),
        ({"one": "text"}, {}, "predictions of one is one text, want a list of texts"),
        (METHODS, {"metrics": ("blue",)}, "metrics is .'blue',., want a list"),
        (
            METHODS,
            {"finish_reasons": {"Good": ["eos"] * 4}},
            "finish_reasons is 'Good', want one of",
        ),
        (
            METHODS,
            {"finish_reasons": {"good": ["stop"] * 4}},
            "finish_reasons holds something else",
        ),
    ],
)
def test_what_is_refused(methods, more, message):
    with pytest.raises(DiveError, match=message):
        dive.evaluate_methods(methods, REFERENCES, **more)


def test_a_list_of_methods_is_refused():
    with pytest.raises(DiveError, match="methods is a list, want a mapping of names"):
        dive.evaluate_methods([METHODS["good"]], REFERENCES)
