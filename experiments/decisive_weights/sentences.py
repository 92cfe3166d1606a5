"""The outcome of the study in words, for every outcome that it can have.

All of them were written before the first confirmatory run; the records choose.
"""

from experiments.decisive_weights import verdicts
from experiments.decisive_weights.protocol import CONFIRMATORY, RUNS
from experiments.decisive_weights.records import Study
from experiments.decisive_weights.verdicts import Comparison, Result, Verdict
from experiments.exact_test import as_text
from experiments.pages import items

_PATHOLOGY = "Weighting pathology tokens"
_MOVES = "moves the threshold and"
_DECISION = "Weighting the token that decides between present and absent"
_END = "Weighting the end"
_LITTLE = ", by less than matters"
PATHOLOGY = {
    Verdict.SHOWN: f"{_PATHOLOGY} ranks rare findings better here",
    Verdict.SMALL: f"{_PATHOLOGY} ranks rare findings better here{_LITTLE}",
    Verdict.REFUTED: f"{_PATHOLOGY} {_MOVES} brings no better ranking of findings here",
    Verdict.SMALL_HARM: f"{_PATHOLOGY} ranks rare findings worse here{_LITTLE}",
    Verdict.HARMS: f"{_PATHOLOGY} ranks rare findings worse here",
    Verdict.UNDECIDED: f"{_PATHOLOGY}: whether it ranks rare findings better here is undecided",
}
DECISION = {
    Verdict.SHOWN: f"{_DECISION} ranks rare findings better here",
    Verdict.SMALL: f"{_DECISION} ranks rare findings better here{_LITTLE}",
    Verdict.REFUTED: f"{_DECISION} brings no better ranking of findings here",
    Verdict.SMALL_HARM: f"{_DECISION} ranks rare findings worse here{_LITTLE}",
    Verdict.HARMS: f"{_DECISION} ranks rare findings worse here",
    Verdict.UNDECIDED: f"{_DECISION}: whether it ranks rare findings better here is undecided",
}
END = {
    Verdict.SHOWN: f"{_END} tells better where a report ends here",
    Verdict.SMALL: f"{_END} tells better where a report ends here{_LITTLE}",
    Verdict.REFUTED: f"{_END} tells no better where a report ends here",
    Verdict.SMALL_HARM: f"{_END} tells worse where a report ends here{_LITTLE}",
    Verdict.HARMS: f"{_END} tells worse where a report ends here",
    Verdict.UNDECIDED: f"{_END}: whether it tells better where a report ends here is undecided",
}
NOT_BEGUN = (
    "The study has no confirmatory run yet, so decisive weights are neither shown nor refuted."
)
KEPT = (
    "The preset `dive` keeps the paper's weights whatever the outcome: a toy world cannot judge "
    "them on real models."
)


def outcome(study: Study) -> str:
    """Returns the outcome as a list: the three hypotheses, the threshold control, the presets."""
    own = study.part()
    if not own:
        return items([NOT_BEGUN, KEPT])
    lines = []
    whole = len(RUNS) * len(CONFIRMATORY)
    done = sum(record["status"] == "ok" for record in study.of_runs(RUNS))
    if done < whole:
        lines.append(
            f"The study is incomplete: {done} of {whole} runs have measures. A comparison that "
            "lacks a hospital has no verdict."
        )
    (decision, pathology), (end,) = verdicts.hypotheses(study).values()
    first = _hypothesis(pathology, PATHOLOGY, "pathology tokens (P - U)")
    if not _moved(study):
        first = first.replace(f"{_MOVES} ", "")
    lines += [
        first,
        _threshold(study),
        _hypothesis(decision, DECISION, "decision tokens (D - U)"),
        _hypothesis(end, END, "the end (E - U)"),
        KEPT,
    ]
    return items(lines)


def _hypothesis(result: Result, words: dict[Verdict, str], name: str) -> str:
    if result.verdict is Verdict.INCOMPLETE:
        known = len(result.differences)
        return f"No verdict on {name}: {known} of {len(CONFIRMATORY)} hospitals are known."
    assert result.p is not None and result.corrected is not None
    unit = "AUROC of ends" if result.comparison.measure == "end_auroc" else "rare AUROC"
    figures = (
        f"{unit} {result.size(3)}; above 0 in {result.higher} of "
        f"{len(result.differences)} hospitals; p {as_text(result.p)}, corrected "
        f"{as_text(result.corrected)}"
    )
    return f"{words[result.verdict]} ({figures}: **{result.verdict.value}**)."


def _moved(study: Study) -> bool:
    """Whether P states more rare slots than U, or fewer: the interval is without 0."""
    return _apart(verdicts.compare(study, Comparison(("P",), ("U",), "slot_positives")))


def _apart(result: Result) -> bool:
    return result.mean is not None and result.half is not None and abs(result.mean) > result.half


def _threshold(study: Study) -> str:
    """Returns what P does to the stated findings, beside U with a threshold that states as many."""
    found = {
        (arms, measure): verdicts.compare(study, Comparison(arms[:1], arms[1:], measure))
        for arms in (("P", "U"), ("T", "U"), ("P", "T"))
        for measure in ("slot_recall", "slot_precision")
    }
    stated = verdicts.compare(study, Comparison(("P",), ("U",), "slot_positives"))
    if any(one.missing for one in (*found.values(), stated)):
        known = min(len(one.differences) for one in (*found.values(), stated))
        return (
            "No word on the threshold control (P - U beside T - U): "
            f"{known} of {len(CONFIRMATORY)} hospitals are known."
        )
    points = [f"{100 * (one.mean or 0):+.1f}" for one in found.values()]
    same = not any(_apart(one) for (arms, _), one in found.items() if arms == ("P", "T"))
    end = (
        "the same within the interval of the difference"
        if same
        else "which is not the same: the interval of the difference is without 0"
    )
    return (
        f"With them {stated.mean or 0:+.1f} rare slots are stated per hospital, recall changes by "
        f"{points[0]} and precision by {points[1]} points; uniform weights with a threshold that "
        f"states as many change them by {points[2]} and {points[3]}, {end}."
    )


def floor(study: Study) -> str:
    """Returns what a floor per class does, beside U with a threshold that states as many slots."""
    if not study.part():
        return items([NOT_BEGUN])
    wanted = {
        "stated": Comparison(("C",), ("U",), "slot_positives"),
        "recall": Comparison(("C",), ("U",), "slot_recall"),
        "control": Comparison(("TC",), ("U",), "slot_recall"),
        "apart": Comparison(("C",), ("TC",), "slot_recall"),
        "ranking": Comparison(("C",), ("U",)),
    }
    found = {name: verdicts.compare(study, one) for name, one in wanted.items()}
    known = min(len(one.differences) for one in found.values())
    if known < len(CONFIRMATORY):
        return items([f"A floor per class: {known} of {len(CONFIRMATORY)} hospitals are known."])
    size = {name: one.size(1 if name == "stated" else 3) for name, one in found.items()}
    return items(
        [
            "With a floor of 10% on each class's share of the weight, the rare slots stated per "
            f"hospital change by {size['stated']} against uniform weights, and their recall by "
            f"{size['recall']}; uniform weights with a threshold that states as many change it "
            f"by {size['control']} (C - TC: {size['apart']}). Rare AUROC changes by "
            f"{size['ranking']}."
        ]
    )
