"""Predictions of several training seeds: means, and what they would have been otherwise."""

import json

import numpy as np
import pytest

import dive
from dive.errors import DiveError
from dive.metrics.bootstrap import resamples
from dive.metrics.seed_spread import mean_with_both

REFERENCES = [
    "Large left effusion. Normal heart.", "No pleural effusion.", "Pulmonary edema.",
    "No rib fracture.", "Clear lungs.", "Scoliosis.", "Left effusion.", "Moderate edema.",
]  # fmt: skip
SEEDS = [
    ["Left effusion.", "No effusion.", "Edema.", "Fracture.", "Clear.", "Hernia.", *["Edema."] * 2],
    [*REFERENCES[:4], "x y", "Scoliosis is seen.", "Left effusion.", "Clear."],
    ["Clear lungs."] * 8,
]  # fmt: skip
BASELINES = [["No edema."] * 8, ["Left effusion."] * 8, REFERENCES]
METRICS = ["bleu", "rougeL", "findings"]


def test_numbers_are_means_over_the_seeds() -> None:
    got = dive.evaluate_seeds(SEEDS, REFERENCES, METRICS)
    each = [dive.evaluate(texts, REFERENCES, METRICS) for texts in SEEDS]
    assert got["seeds"]["count"] == 3 and got["seeds"]["scores"].keys() == got["variants"].keys()
    for name, one in got["seeds"]["scores"].items():
        values = [result[name] for result in each]
        assert one["values"] == values
        assert got[name] == one["mean"] == pytest.approx(np.mean(values), rel=1e-12)
        assert one["sd_seeds"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        assert one.keys() == {"mean", "values", "sd_seeds"}  # no bootstrap was asked for
    assert got["variants"] == each[0]["variants"]
    assert got["scored"] == 8 and "per_report" not in got


def test_one_list_is_what_evaluate_gives() -> None:
    options = {"bootstrap": 40, "baseline": REFERENCES}
    plain = dive.evaluate(SEEDS[0], REFERENCES, METRICS, **options)
    options["baseline"] = [REFERENCES]
    got = dive.evaluate_seeds(SEEDS[:1], REFERENCES, METRICS, **options)
    spread = got.pop("seeds")
    del got["baseline_seeds"]
    for group in (*got["classes"].values(), *got["terciles"].values()):
        group.pop("seeds", None)
    assert got == plain
    assert spread["scores"]["rougeL"]["sd_seeds"] is None
    assert spread["scores"]["rougeL"]["interval"] == plain["intervals"]["rougeL"]
    assert "interval_both" not in spread["scores"]["rougeL"]


def test_all_seeds_are_scored_on_the_same_draws() -> None:
    patients = ["a", "a", "b", "c", "c", "d", "d", "d"]
    units = [[0, 1], [2], [3, 4], [5, 6, 7]]
    got = dive.evaluate_seeds(
        SEEDS, REFERENCES, ["rougeL"], baseline=BASELINES, bootstrap=70, seed=2, patients=patients
    )
    means, gaps = [], []
    for counts in np.concatenate(list(resamples(4, 70, 2))):
        drawn = [i for unit, n in zip(units, counts, strict=True) for _ in range(n) for i in unit]
        truth = [REFERENCES[i] for i in drawn]
        ours, theirs = (
            np.mean([dive.evaluate([t[i] for i in drawn], truth, ["rougeL"])["rougeL"] for t in of])
            for of in (SEEDS, BASELINES)
        )
        means.append(ours)
        gaps.append(ours - theirs)
    spread, gap = got["seeds"]["scores"]["rougeL"], got["differences"]["rougeL"]
    assert spread["sd_patients"] == pytest.approx(np.std(means, ddof=1), rel=1e-9)
    wanted = [*np.quantile(means, [0.025, 0.975])]
    assert spread["interval"] == got["intervals"]["rougeL"] == pytest.approx(wanted, rel=1e-9)
    assert gap["interval"] == pytest.approx([*np.quantile(gaps, [0.025, 0.975])], rel=1e-9)
    assert gap["difference"] == pytest.approx(got["rougeL"] - got["baseline"]["rougeL"])
    assert got["baseline_seeds"]["count"] == 3
    low, high = spread["interval_both"]
    assert low < spread["interval"][0] and high > spread["interval"][1]
    low, high = gap["interval_both"]
    assert low < gap["interval"][0] and high > gap["interval"][1]


def test_seeds_that_agree_add_nothing() -> None:
    got = dive.evaluate_seeds([SEEDS[0]] * 3, REFERENCES, ["rougeL"], bootstrap=50)
    one = got["seeds"]["scores"]["rougeL"]
    assert one["sd_seeds"] == pytest.approx(0, abs=1e-15)
    assert one["interval_both"] == pytest.approx(one["interval"], rel=1e-12)


def test_reports_that_agree_leave_the_seeds_alone() -> None:
    """Every report scores the same: units add nothing, and 3 seeds have 10 means of drawn seeds."""
    texts = [["a b c d"] * 6, ["a b x y"] * 6, ["x y z w"] * 6]
    got = dive.evaluate_seeds(texts, ["a b c d"] * 6, ["rougeL"], bootstrap=4000)
    one = got["seeds"]["scores"]["rougeL"]
    assert one["values"] == pytest.approx([1.0, 0.5, 0.0])
    assert one["sd_patients"] == pytest.approx(0, abs=1e-12)
    assert one["interval"] == pytest.approx([0.5, 0.5])
    # P(mean = 0) = P(mean = 1) = 1/27 > 2.5%
    assert one["interval_both"] == pytest.approx([0, 1], abs=1e-12)
    drawn = mean_with_both(np.repeat([[1.0], [0.5], [0.0]], 20_000, axis=1), 0, 0)
    # the variance of the mean of three draws with replacement, within 4 standard errors of it
    assert drawn.var() == pytest.approx((0.5 / 3) / 3, rel=4 * np.sqrt(2 / 20_000))
    assert not np.array_equal(
        drawn, mean_with_both(np.array([[1.0], [0.5], [0.0]]).repeat(20_000, 1), 0, 1)
    )


def test_a_class_that_one_seed_never_states_has_no_mean() -> None:
    texts = [["Edema."] * 2, ["Clear."] * 2]
    got = dive.evaluate_seeds(texts, ["Edema."] * 2, ["findings"], bootstrap=20)
    edema = got["classes"]["Edema"]
    assert edema["scores"]["finding_precision"] is None
    assert edema["seeds"]["scores"]["finding_precision"]["values"] == [1.0, None]
    assert edema["seeds"]["scores"]["finding_precision"]["sd_seeds"] is None
    assert edema["scores"]["finding_recall"] == 0.5
    json.dumps(got, allow_nan=False)


def test_counts_and_rates_are_of_all_seeds() -> None:
    texts = [["a", ""], ["nan", "b"], ["a", "b"]]
    reasons = [["eos", "length"], ["eos", "eos"], ["length", "length"]]
    got = dive.evaluate_seeds(texts, ["a", "b"], ["rougeL"], finish_reasons=reasons)
    assert got["empty_predictions"] == 2 and got["reports"] == 2
    assert got["placeholders"] == {"predictions of seed 2": 1}
    assert got["termination_rate"] == 0.5
    assert got["seeds"]["scores"]["termination_rate"]["values"] == [0.5, 1.0, 0.0]


def test_the_lexicon_reads_every_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from dive.decisive import mentions

    read: list[str] = []
    find = mentions.find_mentions

    def counted(text: str):
        read.append(text)
        return find(text)

    monkeypatch.setattr(mentions, "find_mentions", counted)
    dive.evaluate_seeds(SEEDS, REFERENCES, ["findings"], baseline=BASELINES, bootstrap=5)
    assert sorted(read) == sorted({text for texts in (*SEEDS, *BASELINES) for text in texts})


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], ["a"]), {}, "predictions holds no lists of texts, want one list per training seed"),
        ((["a"], ["a"]), {}, "predictions holds no lists of texts"),
        (("a", ["a"]), {}, "predictions holds no lists of texts"),
        (([["a"], ["a", "b"]], ["a"]), {}, "predictions of seed 2: 2 for 1 references"),
        (([["a"], "b"], ["a"]), {}, "predictions holds no lists of texts"),
        (([["a"]] * 3, ["a"]), {"baseline": [["a"]] * 2}, "baseline: 2 lists for 3 of predictions"),
        (([["a"]], ["a"]), {"baseline": ["a"]}, "baseline holds no lists of texts"),
        (
            ([["a"]] * 2, ["a"]),
            {"finish_reasons": [["eos"]]},
            "finish_reasons: 1 lists for 2 of predictions",
        ),
        (([["a"]] * 2, ["a"]), {"per_report": True}, "per_report is of one list of predictions"),
    ],
)
def test_bad_input(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(DiveError, match=message):
        dive.evaluate_seeds(*arguments, **options)


def test_an_unknown_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match="bootsrap"):
        dive.evaluate_seeds([["a"]], ["a"], bootsrap=3)
