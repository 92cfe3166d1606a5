"""The outcome of the study in words, for every outcome that it can have.

All of them were written before the first confirmatory run; the records choose.
"""

from experiments.decisive_weights import verdicts
from experiments.decisive_weights.protocol import CONFIRMATORY, RUNS
from experiments.decisive_weights.records import Study
from experiments.decisive_weights.verdicts import Comparison, Result, Verdict
from experiments.exact_test import as_text

PATHOLOGY = {
    Verdict.SHOWN: "Weighting pathology tokens ranks rare findings better here",
    Verdict.SMALL: "Weighting pathology tokens ranks rare findings better here, by less than matters",
    Verdict.REFUTED: "Weighting pathology tokens moves the threshold and brings no better ranking of "
    "findings here",
    Verdict.SMALL_HARM: "Weighting pathology tokens ranks rare findings worse here, by less than "
    "matters",
    Verdict.HARMS: "Weighting pathology tokens ranks rare findings worse here",
    Verdict.UNDECIDED: "Whether weighting pathology tokens ranks rare findings better is undecided "
    "here",
}
DECISION = {
    Verdict.SHOWN: "Weighting the token that decides between present and absent ranks rare findings "
    "better",
    Verdict.SMALL: "Weighting the token that decides between present and absent ranks rare findings "
    "better, by less than matters",
    Verdict.REFUTED: "Weighting the token that decides between present and absent brings no better "
    "ranking either",
    Verdict.SMALL_HARM: "Weighting the token that decides between present and absent ranks rare "
    "findings worse, by less than matters",
    Verdict.HARMS: "Weighting the token that decides between present and absent ranks rare findings "
    "worse",
    Verdict.UNDECIDED: "Whether weighting the token that decides between present and absent does is "
    "undecided",
}
END = {
    Verdict.SHOWN: "Weighting the end tells better where a report ends",
    Verdict.SMALL: "Weighting the end tells better where a report ends, by less than matters",
    Verdict.REFUTED: "Weighting the end does not tell better where a report ends",
    Verdict.SMALL_HARM: "Weighting the end tells worse where a report ends, by less than matters",
    Verdict.HARMS: "Weighting the end tells worse where a report ends",
    Verdict.UNDECIDED: "Whether weighting the end tells better where a report ends is undecided",
}
NOT_BEGUN = "The study has no confirmatory run yet, so decisive weights are neither shown nor refuted."
KEPT = (
    "The preset `dive` keeps the paper's weights whatever the outcome: a toy world cannot judge them "
    "on real models."
)


def outcome(study: Study) -> str:
    """Returns the outcome as a list: the three hypotheses, the threshold control, the presets."""
    own = study.part()
    if not own:
        return f"- {NOT_BEGUN}\n- {KEPT}"
    lines = []
    whole = len(RUNS) * len(CONFIRMATORY)
    done = sum(record["status"] == "ok" for record in own)
    if done < whole:
        lines.append(
            f"The study is incomplete: {done} of {whole} runs have measures. A comparison that lacks "
            "a hospital has no verdict."
        )
    (decision, pathology), (end,) = verdicts.hypotheses(study).values()
    lines += [
        _hypothesis(pathology, PATHOLOGY, "pathology tokens (P - U)"),
        _threshold(study),
        _hypothesis(decision, DECISION, "decision tokens (D - U)"),
        _hypothesis(end, END, "the end (E - U)"),
        KEPT,
    ]
    return "\n".join(f"- {line}" for line in lines)


def _hypothesis(result: Result, words: dict[Verdict, str], name: str) -> str:
    if result.verdict is Verdict.INCOMPLETE:
        known = len(result.differences)
        return f"No verdict on {name}: {known} of {len(CONFIRMATORY)} hospitals are known."
    assert result.mean is not None and result.half is not None
    assert result.p is not None and result.corrected is not None
    unit = "AUROC of ends" if result.comparison.measure == "end_auroc" else "rare AUROC"
    figures = (
        f"{unit} {result.mean:+.3f} ± {result.half:.3f}; above 0 in {result.higher} of "
        f"{len(result.differences)} hospitals; p {as_text(result.p)}, corrected "
        f"{as_text(result.corrected)}"
    )
    return f"{words[result.verdict]} ({figures}: {_word(result.verdict)})."


def _word(verdict: Verdict) -> str:
    return f"**{verdict.value}**"


def _threshold(study: Study) -> str:
    """Returns what P does to the stated findings, beside U with a threshold that states as many."""
    sizes = []
    for arms in (("P", "U"), ("T", "U"), ("P", "T")):
        for measure in ("slot_recall", "slot_precision"):
            sizes.append(verdicts.compare(study, Comparison(arms[:1], arms[1:], measure)))
    if any(one.missing or one.mean is None or one.half is None for one in sizes):
        least = min(len(one.differences) for one in sizes)
        return (
            "No word on the threshold control (P - U beside T - U): "
            f"{least} of {len(CONFIRMATORY)} hospitals are known."
        )
    shown = [100 * one.mean for one in sizes if one.mean is not None]
    beyond = [abs(one.mean) > one.half for one in sizes[4:] if one.mean is not None and one.half]
    end = (
        "the same within the intervals of their difference"
        if not any(beyond)
        else "not the same: an interval of their difference is without 0"
    )
    return (
        f"At the rare slots it changes recall by {shown[0]:+.1f} and precision by {shown[1]:+.1f} "
        f"points; uniform weights with a threshold that states as many slots change them by "
        f"{shown[2]:+.1f} and {shown[3]:+.1f}, {end}."
    )
