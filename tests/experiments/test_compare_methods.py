"""The experiment on the built-in world: its protocol, its tables, and what is claimed of it."""

import json
import re
from fractions import Fraction
from math import gamma, pi, sqrt
from statistics import stdev

import pytest

from dive.demo import methods, run
from dive.errors import DiveError
from experiments import compare_methods as experiment
from experiments import comparison_tables as tables
from experiments import demo_records, evidence
from experiments.exact_test import half_interval, holm, sign_flip


def record(method="DIVE", hospital=1, seed=0, **scores):
    return {
        "part": "main", "hospital": hospital, "seed": seed, "method": method, "bleu4": 90.0,
        "rouge_l": 92.0, "style_f1": 60.0, "concept_f1": 70.0, "terminated": 99.0,
        "length_ratio": 1.0,
    } | scores  # fmt: skip


def test_no_hospital_serves_two_ends():
    ends = (experiment.TEST_HOSPITALS, experiment.DEVELOPMENT_HOSPITALS, (run.HOSPITAL,))
    assert len({*ends[0], *ends[1], *ends[2]}) == sum(len(end) for end in ends)
    for name, part in experiment.PARTS.items():
        own = (
            experiment.DEVELOPMENT_HOSPITALS if name == "development" else experiment.TEST_HOSPITALS
        )
        assert part.hospitals == own
        names = [method.name for method in part.methods]
        assert len(set(names)) == len(names)


def test_every_difference_names_methods_of_the_experiment():
    parts = [{method.name for method in part.methods} for part in experiment.PARTS.values()]
    for _, with_it, without in tables.DIFFERENCES:
        assert any({with_it, without} <= names for names in parts)
    # every alternative on the development hospitals is compared with the choice
    compared = {name for change in tables.DIFFERENCES for name in change[1:]}
    assert {method.name for method in experiment.CHOICES} <= compared


def test_scores_are_means_over_runs():
    records = [record(), record(hospital=2, bleu4=80.0), record("DIVE, rank 1")]
    for name, count in (("scores", 4), ("demo scores", 3)):
        page = tables.tables(records)[f"{name}, main"]()
        assert "| **DIVE** | 2 | 85.0 ± 7.1 |" in page
        assert page.count("\n|") == count - 1


def test_differences_are_paired_and_spread_over_hospitals():
    plain = "DIVE, uniform weights"
    records = [
        record(style_f1=64.0), record(seed=1, style_f1=61.0), record(hospital=2, style_f1=70.0),
        record(plain), record(plain, seed=1, style_f1=62.0), record(plain, hospital=2),
        record("zero-shot", seed=None, bleu4=10.0),
    ]  # fmt: skip
    text = tables.differences(records)
    # hospital 1: +4 and -1, hospital 2: +10; t(1) * sd(1.5, 10) / sqrt(2) = 54.0; p = 2/4
    none = "+0.0 ± 0.0; 0 of 2; p 1, 1"
    assert f"| decisive weights | {none} | +5.8 ± 54.0; 2 of 2; p .500, 1 |" in text
    # no interval for one hospital; a method without training is compared with every seed
    assert "| DIVE in place of no adapter | +80.0; 1 of 1; p 1, 1 |" in text
    assert "LIVE" not in text
    assert text.endswith(
        "\n\n8 tests, corrected together; the smallest p is .500, after correction 1."
    )


def test_sign_flip_by_hand():
    # 1 + 2 + 3 = 6, and of 8 ways only the other sign is as far from 0
    assert sign_flip([1, 2, 3]) == Fraction(2, 8)
    # -1 + 2 + 3 = 4: itself, all three alike, and the other signs of both
    assert sign_flip([-1, 2, 3]) == Fraction(4, 8)
    # ties count: in tenths as floats, .1 + .2 - .3 is not 0
    assert sign_flip([Fraction(1, 10), Fraction(2, 10), Fraction(-3, 10)]) == 1
    assert sign_flip([0, 0, 0]) == sign_flip([5]) == 1
    assert sign_flip([0, 1, 1]) == Fraction(4, 8)
    assert sign_flip([Fraction(n, 7) for n in (1, 2, 4, 8, 16, 32)]) == Fraction(2, 64)
    assert sign_flip([-1] * 12) == Fraction(2, 4096)
    for wrong in ([], [1] * 21):
        with pytest.raises(DiveError, match=f"{len(wrong)} differences, want 1 to 20"):
            sign_flip(wrong)


def test_intervals_are_those_of_student():
    """The middle 95% of the density of t, by Simpson's rule, for every number of hospitals."""
    for count in range(2, 21):
        values = [Fraction(n % 2) for n in range(count)]
        spread = stdev(map(float, values)) / sqrt(count)
        bound, free = half_interval(values) / spread, count - 1
        steps = 2000
        at = [n * bound / steps for n in range(steps + 1)]
        heights = [(1 + x * x / free) ** (-(free + 1) / 2) for x in at]
        area = heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
        unit = gamma((free + 1) / 2) / sqrt(free * pi) / gamma(free / 2)
        assert 2 * unit * area * bound / steps / 3 == pytest.approx(0.95, abs=1e-6)
    assert half_interval([Fraction(1)]) is None
    with pytest.raises(DiveError, match="21 differences, want 20 at most"):
        half_interval([Fraction(1)] * 21)


def test_holm_by_hand():
    # .01 * 4, .02 * 3, then .03 * 2 is not below the one before, .04 * 1 neither
    hundredths = [Fraction(n, 100) for n in (4, 1, 3, 2)]
    assert holm(hundredths) == [Fraction(n, 100) for n in (6, 4, 6, 6)]
    assert holm([Fraction(1, 2), Fraction(2, 5)]) == [Fraction(4, 5)] * 2
    assert holm([Fraction(3, 4)] * 3) == [1] * 3
    assert holm([Fraction(1, 32)]) == [Fraction(1, 32)] and holm([]) == []
    # two of the least p of six hospitals
    assert holm([Fraction(2, 64)] * 2) == [Fraction(1, 16)] * 2


def test_p_values_are_corrected_over_the_whole_part_whatever_is_shown_of_it():
    """Six hospitals: one change by 1 to 6 in one measure, another by 1, 1, 1, 1, 1, -1."""
    records = []
    for n in range(1, 7):
        records += [
            record(hospital=n, bleu4=90.0 + n),
            record("DIVE, uniform weights", hospital=n),
            record("DIVE, rank 1", hospital=n, bleu4=90.0 + n - (-1 if n == 6 else 1)),
        ]
    measures = {label: one for label, _, _, one in tables.measured(records)}
    weights, rank = measures["decisive weights"][0], measures["rank 8, for rank 1"][0]
    assert (weights.p, weights.corrected, weights.higher) == (Fraction(2, 64), Fraction(1, 4), 6)
    # 6 ways to have one odd sign, and all alike, each in both directions
    assert (rank.p, rank.corrected, rank.higher) == (Fraction(14, 64), 1, 5)
    assert str(weights) == "+3.5 ± 2.0; 6 of 6; p .031, .250"
    demo = tables.demo_differences(records)
    assert str(weights) in demo and "rank 8" not in demo
    every = tables.differences(records)
    assert every.endswith(
        "8 tests, corrected together; the smallest p is .031, after correction .250."
    )
    with pytest.raises(DiveError, match="no two methods of these records are compared"):
        tables.differences(records[:1])


@pytest.mark.parametrize(
    ("p", "text"),
    [(Fraction(1), "1"), (Fraction(1, 16), ".063"), (Fraction(2, 64), ".031"),
     (Fraction(1, 2), ".500"), (Fraction(2, 2**20), "<.001"), (Fraction(2, 4096), "<.001")],
)  # fmt: skip
def test_p_as_text(p, text):
    one = tables.Difference(1.0, None, 1, 1, p, p)
    assert str(one) == f"+1.0; 1 of 1; p {text}, {text}"


def test_a_run_appends_what_is_missing(tmp_path, monkeypatch):
    calls = []

    def run_method(method, backbone, where, *, seed, steps):
        calls.append((method.name, where.seed, seed, steps))
        return methods.Outcome({key: 1.0 for key in tables.SCORES}, [])

    monkeypatch.setattr(experiment.m, "run_method", run_method)
    monkeypatch.setattr(
        experiment.m, "open_hospital", lambda n, *_: methods.Hospital(n, *[None] * 4)
    )
    monkeypatch.setitem(
        experiment.PARTS,
        "main",
        experiment.Part(
            (methods.ZERO_SHOT, methods.DIVE), hospitals=(11, 12), seeds=(0, 1), steps=7
        ),
    )
    out = tmp_path / "records.jsonl"
    experiment.main(["--part", "main", "--hospitals", "12", "--out", str(out)])
    assert calls == [("zero-shot", 12, 0, 7), ("DIVE", 12, 0, 7), ("DIVE", 12, 1, 7)]
    experiment.main(["--part", "main", "--out", str(out)])
    assert [one[1] for one in calls] == [12] * 3 + [11] * 3
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["hospital"], one["seed"]) for one in found] == [
        (12, None), (12, 0), (12, 1), (11, None), (11, 0), (11, 1),
    ]  # fmt: skip
    with pytest.raises(DiveError, match="part is 'mane', want one of development, main"):
        experiment.main(["--part", "mane"])
    with pytest.raises(DiveError, match="none of the hospitals"):
        experiment.main(["--part", "main", "--hospitals", "3", "--out", str(out)])


def test_the_control_writes_from_the_next_patients_image(monkeypatch):
    where = methods.open_hospital(901, train=1, test=3)
    seen = []

    def generate(backbone, test, **kwargs):
        seen.extend(test)
        return []

    monkeypatch.setattr("dive.generate", generate)
    monkeypatch.setattr(methods, "score", lambda *_: {})
    control = methods.Method("control", others_images=True)
    methods.run_method(control, None, where)
    assert [s.id for s in seen] == [s.id for s in where.test]
    assert [s.images for s in seen] == [where.test[n].images for n in (1, 2, 0)]


def test_no_page_claims_more_than_the_tests_give():
    records = demo_records.load()
    for name, part in experiment.PARTS.items():
        own = [record for record in records if record["part"] == name]
        every = [one for *_, one in tables.measured(own) for one in one]
        assert {one.hospitals for one in every} == {len(part.hospitals)}
        assert all(one.corrected > Fraction(5, 100) for one in every)
        if name == "main":  # as README states it
            assert len(every) == 60 and all(one.corrected == 1 for one in every)
    # no corrected p is below .05, so no page may claim
    claims = re.compile(r"\b(beats?|wins?|outperforms?|significant\w*|proves|better than)\b", re.I)
    for page in (experiment.ROOT / name for name in evidence.PAGES):
        text = page.read_text(encoding="utf-8")
        assert claims.findall(text) == [], page.name


def test_what_the_records_say_of_the_long_trainings():
    """docs/study.md: the 400-step part was cut to one seed while the main part was running."""
    records = demo_records.load()
    text = " ".join((experiment.ROOT / "docs" / "study.md").read_text(encoding="utf-8").split())
    for part, commit in (("development", "48eb7e6"), ("main", "1e0b14f"), ("400 steps", "7595980")):
        assert {one["commit"] for one in records if one["part"] == part} == {commit}
        assert commit in text
    assert {one["seed"] for one in records if one["part"] == "400 steps"} == {0}
    prompts = {one["prompt_tokens"] for one in records
               if (one["part"], one["method"]) == ("main", "3-shot in context")}  # fmt: skip
    readme = " ".join((experiment.ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"21 tokens in place of {min(prompts):.0f} to {max(prompts):.0f}" in readme
