"""Verdicts on made-up records: each can be reached, and nothing that is missing is passed over."""

import json
from fractions import Fraction

import pytest
from decisive_records import BIG, HOSPITALS, NOTHING, SMALL, WIDE, record, whole_study

from dive.errors import DiveError
from experiments.decisive_weights import protocol, verdicts
from experiments.decisive_weights import records as records_module
from experiments.decisive_weights.records import Study, load
from experiments.decisive_weights.verdicts import Comparison, Verdict, compare, hypotheses


def of(study, name):
    return {str(one.comparison): one for own in hypotheses(study).values() for one in own}[name]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        (BIG, Verdict.SHOWN),
        (SMALL, Verdict.SMALL),
        (NOTHING, Verdict.REFUTED),
        ([-one for one in SMALL], Verdict.SMALL_HARM),
        ([-one for one in BIG], Verdict.HARMS),
        (WIDE, Verdict.UNDECIDED),
    ],
)
def test_every_verdict_can_be_reached(differences, verdict):
    found = of(Study(whole_study(P=differences)), "P - U")
    assert found.verdict is verdict
    assert found.mean == pytest.approx(sum(differences) / 12)
    # the others are 0 in every hospital: an interval of no width around 0
    assert of(Study(whole_study(P=differences)), "D - U").verdict is Verdict.REFUTED


def test_the_interval_decides_what_is_refuted():
    """Twelve hospitals: half is t(11) = 2.20099 times sd / sqrt(12)."""
    found = of(Study(whole_study(P=NOTHING)), "P - U")
    sd = (12 * 0.005**2 / 11) ** 0.5
    assert found.half == pytest.approx(2.20099 * sd / 12**0.5)
    # mean 0.015 ± 0.0033 is inside, 0.018 ± 0.0033 is not
    for mean, inside in ((0.015, True), (0.018, False), (-0.018, False)):
        one = of(Study(whole_study(P=[mean + d for d in NOTHING])), "P - U")
        assert one.inside_margin is inside
    # a margin of AUROC says nothing of other measures
    style = compare(Study(whole_study()), Comparison(("P",), ("U",), "style_f1"))
    assert style.mean == 0 and not style.inside_margin


def test_the_hypotheses_are_one_family():
    """All alike: 2/4096, times 3, 2 and 1, and never below the one before."""
    made = whole_study(P=BIG, D=BIG)
    for one in made:
        if one["arm"] == "E":
            one["end_auroc"] = 0.9 + BIG[one["hospital"] - 2001]
    found = [one for own in hypotheses(Study(made)).values() for one in own]
    assert [str(one.comparison) for one in found] == ["D - U", "P - U", "E - U"]
    assert [one.comparison.measure for one in found] == ["rare_auroc", "rare_auroc", "end_auroc"]
    assert {one.p for one in found} == {Fraction(2, 4096)}
    assert {one.corrected for one in found} == {Fraction(6, 4096)}
    assert {one.verdict for one in found} == {Verdict.SHOWN}
    # alone, it is the smallest of three, whatever the others lack
    alone = of(Study([one for one in made if one["arm"] in "PU"]), "P - U")
    assert (alone.p, alone.corrected) == (Fraction(2, 4096), Fraction(6, 4096))


def test_the_secondary_comparisons_are_one_family():
    found = verdicts.secondary(Study(whole_study(P=BIG)))
    shown = {
        name: [f"{one.comparison} {one.comparison.measure}" for one in own]
        for name, own in found.items()
    }
    assert shown == {
        "S1": ["P - U slot_recall", "T - U slot_recall", "P - U slot_precision",
               "T - U slot_precision"],
        "S2": [f"{arm} - U {name}" for name in ("slot_nll", "style_f1", "concept_f1", "bleu4")
               for arm in "PD"],
        "S3": ["P - R rare_auroc", "S - P rare_auroc", "V - P rare_auroc", "V - U rare_auroc",
               "D - P rare_auroc"],
        "S4": ["(FP - FU) - (P - U) rare_auroc"] * 2,
    }  # fmt: skip
    assert [one.comparison.steps for one in found["S4"]] == [50, 200]
    every = {str(one.comparison): one for own in found.values() for one in own}
    # of 19 tests six have the least p: P - R, S - P, V - P, D - P, and S4 twice
    assert every["P - R"].corrected == 19 * Fraction(2, 4096)
    assert every["P - R"].verdict is Verdict.SHOWN
    assert every["S - P"].verdict is Verdict.HARMS
    assert every["V - U"].corrected == 1
    assert {one.verdict for one in found["S4"]} == {Verdict.HARMS}


def test_lower_is_better_where_it_is_a_loss():
    made = whole_study()
    for one in made:
        if one["arm"] == "P":
            one["slot_nll"] = 0.3
    found = verdicts.secondary(Study(made))["S2"][0]
    assert (found.mean, found.verdict) == (pytest.approx(-0.1), Verdict.SHOWN)


def test_the_threshold_control_is_read_from_the_records_of_p():
    made = whole_study()
    for one in made:
        if one["arm"] == "P":
            one |= {"slot_positives": 40, "slot_hits": 20, "slot_positives_T": 40}
            one["slot_hits_T"] = 16
    found = verdicts.secondary(Study(made))["S1"]
    assert [one.mean for one in found] == pytest.approx([0.25, 0.15, 0.0, -0.1])
    both = compare(Study(made), Comparison(("P",), ("T",), "slot_recall"))
    assert both.differences[2001] == Fraction(4, 40)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "diverged", "reason": "the loss is inf"}, "P diverged"),
        ({"status": "failed", "reason": "no memory"}, "P failed"),
        ({"rare_auroc": None}, "P rare_auroc does not have the four rare findings"),
        ({"rare_auroc": {"left nodule": 0.8}}, "P rare_auroc does not have the four"),
        ({"rare_auroc": dict.fromkeys(protocol.RARE, float("nan"))}, "is nan"),
        (None, "P not run"),
    ],
)
def test_a_missing_hospital_is_named_and_there_is_no_verdict(change, reason):
    made = [
        one if (one["hospital"], one["arm"]) != (2005, "P") else one | (change or {})
        for one in whole_study(P=BIG)
    ]
    if change is None:
        made = [one for one in made if (one["hospital"], one["arm"]) != (2005, "P")]
    found = of(Study(made), "P - U")
    assert len(found.differences) == 11 and list(found.missing) == [2005]
    assert reason in found.missing[2005]
    assert found.verdict is Verdict.INCOMPLETE
    # its size is still there, and the others are judged
    assert found.mean is not None and found.mean > 0.04
    assert of(Study(made), "D - U").verdict is Verdict.REFUTED


def test_what_cannot_be_divided_is_named():
    made = whole_study()
    made[0]["slot_positives"] = 0  # arm U of hospital 2001
    found = compare(Study(made), Comparison(("P",), ("U",), "slot_precision"))
    assert found.missing == {2001: "U slot_positives is 0"}
    for one in made:
        one.pop("slot_hits_T", None)
    found = compare(Study(made), Comparison(("T",), ("U",), "slot_recall"))
    assert found.missing == {hospital: "T no slot_hits_T" for hospital in HOSPITALS}
    assert found.mean is None and found.half is None and found.verdict is Verdict.INCOMPLETE


def test_the_digits_of_the_records_are_exact():
    """In floats .81 - .8 is not .71 - .7."""
    made = [record(2001, "P", rare=0.81), record(2001), record(2002, "P", rare=0.71),
            record(2002, rare=0.7)]  # fmt: skip
    assert set(compare(Study(made), verdicts.P_U).differences.values()) == {Fraction(1, 100)}


def write(tmp_path, *made):
    path = tmp_path / "decisive-weights.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in made))
    return path


def test_reading(tmp_path):
    assert load(tmp_path / "none.jsonl") == Study([])
    path = write(tmp_path, *whole_study())
    study = load(path)
    assert len(study.part()) == 12 * len(protocol.RUNS) == 264 and {
        arm for _, _, arm, _, _ in study.missing()
    } == {"C"}
    assert study.find("noisy", "D", 100).keys() == set(HOSPITALS)
    assert study.find("noisy", "S", 100) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": "Q"}, "jsonl:2: arm is 'Q', want one of U, P, P8"),
        ({"world": "toy"}, "jsonl:2: world is 'toy', want one of tail, noisy"),
        ({"part": "main"}, "jsonl:2: part is 'main', want one of confirmatory, pilot, rates"),
        ({"status": "fine"}, "jsonl:2: status is 'fine', want one of ok, diverged, failed"),
        ({"hospital": 2901}, "jsonl:2: hospital is 2901, want one of 2001, 2002"),
        ({"steps": 400}, "jsonl:2: world tail, arm U, steps 400 is no run of the protocol"),
        ({"seed": 1}, "jsonl:2: seed is 1, want one of 0"),
        ({"world": "noisy", "arm": "S"}, "jsonl:2: world noisy, arm S, steps 100 is no run"),
        ({"hospital": 2001}, "jsonl:2: part confirmatory, .* is a second record of decisive-w.*:1"),
        (
            {"hospital": 2001, "learning_rate": 0.05},
            "jsonl:2: .*hospital 2001, arm U.* is a second record of decisive-weights.jsonl:1",
        ),
    ],
)
def test_a_record_that_nobody_can_place(tmp_path, change, message):
    with pytest.raises(DiveError, match=message):
        load(write(tmp_path, record(), record(2002) | change))


def test_a_failed_run_may_be_repeated(tmp_path):
    failed = record(status="failed")
    assert load(write(tmp_path, failed, failed, record())) == Study([record()], repeated=2)
    assert load(write(tmp_path, failed)) == Study([failed])
    # a failure after it does not undo a run
    assert load(write(tmp_path, record(), failed)) == Study([record()], repeated=1)
    with pytest.raises(DiveError, match="second record"):
        load(write(tmp_path, record(), record(status="diverged")))


def test_rates_are_part_of_the_key_where_they_are_compared(tmp_path):
    tried = [record(2901, part="rates", learning_rate=rate) for rate in (0.1, 0.2)]
    assert len(load(write(tmp_path, *tried)).part("rates")) == 2
    with pytest.raises(DiveError, match="learning_rate 0.1 is a second record"):
        load(write(tmp_path, tried[0], *tried))


def test_the_records_of_the_tree_can_be_read():
    for path in (
        records_module.FILE,
        records_module.FILE.with_name("decisive-weights-pilot.jsonl"),
    ):
        assert load(path).records or not path.exists() or not path.read_bytes()


def test_protocol_and_runner_agree():
    from experiments.decisive_weights import runner, world

    assert tuple(protocol.ARMS) == tuple(runner.ARMS)
    for part, hospitals in protocol.PARTS.items():
        assert set(runner.hospitals_of(part)) <= set(hospitals)
    assert runner.hospitals_of("confirmatory") == protocol.CONFIRMATORY
    assert not set(protocol.CONFIRMATORY) & set(protocol.DEVELOPMENT)
    assert protocol.WORLDS == world.WORLDS and tuple(world.RARE_NAMES.values()) == protocol.RARE
    made = [(run.world, run.arm, run.steps) for run in runner.runs("confirmatory", 2001)]
    assert sorted(made) == sorted(protocol.ALL_RUNS)
    assert {arm for _, arm, _ in protocol.ADDED_RUNS} == {"C"}  # in no run of the protocol
    assert not {arm for _, arm, _ in protocol.RUNS} & {"C"}
    assert runner.FILES["confirmatory"] == records_module.FILE
    assert set(runner.FILES) == set(protocol.PARTS)
