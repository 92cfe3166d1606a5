"""The comparisons that the protocol names, and the verdict on each.

Holm's correction has two families: the three hypotheses, and all secondary comparisons. A
comparison without data counts in its family with p = 1, so that nothing is proven more easily while
runs are missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from statistics import mean

from experiments.decisive_weights.protocol import CONFIRMATORY, LEVEL, MARGIN, STEPS
from experiments.decisive_weights.records import CONTROLS, NoValueError, Study, value
from experiments.exact_test import half_interval, holm, sign_flip

AUROCS = ("rare_auroc", "end_auroc")
LOWER_IS_BETTER = ("slot_nll", "early_stops", "late_stops")


class Verdict(Enum):
    """What a comparison comes to. The values are the words of the tables."""

    SHOWN = "SHOWN"
    SMALL = "real, and smaller than matters"
    REFUTED = "REFUTED"
    SMALL_HARM = "HARMS, by less than matters"
    HARMS = "HARMS"
    UNDECIDED = "undecided"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class Comparison:
    """A difference: the arms that count with + and those with -, in one measure.

    plus and minus: names of arms; "T" and "TC" are controls by a threshold. steps and world hold
    for all.
    """

    plus: tuple[str, ...]
    minus: tuple[str, ...]
    measure: str = "rare_auroc"
    steps: int = STEPS
    world: str = "tail"

    def __str__(self) -> str:
        if len(self.plus) == 1:
            return f"{self.plus[0]} - {self.minus[0]}"
        pairs = [f"({self.plus[0]} - {self.minus[0]})", f"({self.minus[1]} - {self.plus[1]})"]
        return " - ".join(pairs)


def _plain(plus: str, minus: str, measure: str = "rare_auroc") -> Comparison:
    return Comparison((plus,), (minus,), measure)


P_U, D_U, E_U = _plain("P", "U"), _plain("D", "U"), _plain("E", "U", "end_auroc")
HYPOTHESES = {"H1": (D_U, P_U), "H2": (E_U,)}


def interaction(steps: int) -> Comparison:
    """Weights at fixed vectors minus weights at state-conditioned steering."""
    return Comparison(("FP", "U"), ("FU", "P"), steps=steps)


SECONDARY = {
    "S1": tuple(
        _plain(arm, "U", measure)
        for measure in ("slot_recall", "slot_precision")
        for arm in ("P", "T")
    ),
    "S2": tuple(
        _plain(arm, "U", measure)
        for measure in ("slot_nll", "style_f1", "concept_f1", "bleu4")
        for arm in ("P", "D")
    ),
    "S3": (
        _plain("P", "R"), _plain("S", "P"), _plain("V", "P"), _plain("V", "U"), _plain("D", "P"),
    ),
    "S4": (interaction(50), interaction(200)),
}  # fmt: skip

# Neither tested nor corrected: sizes and intervals alone.
EXPLORATORY = (
    *(_plain(arm, "U") for arm in ("P8", "P1", "E", "S", "R")),
    _plain("D", "R"),
    _plain("P", "U", "slot_positives"),
    _plain("P", "T", "slot_recall"),
    _plain("P", "T", "slot_precision"),
    *(_plain("P", "U", name) for name in ("rare_recall", "rare_precision")),
    *(_plain("P", "U", name) for name in ("end_auroc", "early_stops", "late_stops")),
    *(_plain("E", "U", name) for name in ("early_stops", "late_stops")),
    *(Comparison(("P",), ("U",), steps=steps) for steps in (50, 200)),
    *(Comparison(("FP",), ("FU",), steps=steps) for steps in (50, STEPS, 200)),
    interaction(STEPS),
    *(Comparison((arm,), ("U",), world="noisy") for arm in ("P", "D")),
)
# The floor per class beside a threshold that states as much; added later, see protocol.ADDED_RUNS.
ADDED = (
    _plain("C", "U"),
    _plain("C", "P"),
    _plain("C", "U", "slot_positives"),
    *(_plain(arm, "U", name) for name in ("slot_recall", "slot_precision") for arm in ("C", "TC")),
    *(_plain("C", "TC", name) for name in ("slot_recall", "slot_precision")),
    *(_plain("C", "U", name) for name in ("slot_nll", "concept_f1")),
)


@dataclass(frozen=True)
class Result:
    """A comparison over hospitals.

    differences: of those hospitals that have both sides. missing: of the others, why. mean is None
    without any, half (of the 95% interval, Student's t) with less than two. p: two-sided, exact;
    corrected: by Holm over the family; both None for an exploratory comparison.
    """

    comparison: Comparison
    differences: dict[int, Fraction]
    missing: dict[int, str]
    p: Fraction | None = None
    corrected: Fraction | None = None

    @property
    def mean(self) -> float | None:
        return float(mean(self.differences.values())) if self.differences else None

    @property
    def half(self) -> float | None:
        return half_interval(list(self.differences.values()))

    def size(self, digits: int) -> str:
        """Returns the mean difference and half of its 95% interval."""
        if self.mean is None:
            return "-"
        half = "" if self.half is None else f" ± {self.half:.{digits}f}"
        return f"{self.mean:+.{digits}f}{half}"

    @property
    def higher(self) -> int:
        """The number of hospitals in which the difference is above 0."""
        return sum(one > 0 for one in self.differences.values())

    @property
    def inside_margin(self) -> bool:
        """Whether the whole interval is of differences that do not matter; of AUROC alone."""
        if self.comparison.measure not in AUROCS or self.mean is None or self.half is None:
            return False
        return self.mean - self.half > -MARGIN and self.mean + self.half < MARGIN

    @property
    def verdict(self) -> Verdict:
        """The verdict by the protocol.

        It needs every hospital: one over those in which no training diverged would favour what
        diverges.
        """
        if self.missing or self.mean is None or self.corrected is None:
            return Verdict.INCOMPLETE
        gain = -self.mean if self.comparison.measure in LOWER_IS_BETTER else self.mean
        if self.corrected < Fraction(str(LEVEL)):
            if gain > 0:
                return Verdict.SMALL if self.inside_margin else Verdict.SHOWN
            return Verdict.SMALL_HARM if self.inside_margin else Verdict.HARMS
        return Verdict.REFUTED if self.inside_margin else Verdict.UNDECIDED


def compare(study: Study, comparison: Comparison) -> Result:
    """Returns the differences of a comparison, without p values."""
    differences: dict[int, Fraction] = {}
    missing: dict[int, str] = {}
    signed = [(1, arm) for arm in comparison.plus] + [(-1, arm) for arm in comparison.minus]
    for hospital in CONFIRMATORY:
        total, reasons = Fraction(0), []
        for sign, arm in signed:
            try:
                total += sign * _of_arm(study, comparison, arm, hospital)
            except NoValueError as error:
                reasons.append(f"{arm} {error}")
        if reasons:
            missing[hospital] = ", ".join(reasons)
        else:
            differences[hospital] = total
    return Result(comparison, differences, missing)


def _of_arm(study: Study, comparison: Comparison, arm: str, hospital: int) -> Fraction:
    control = "_T" if arm in CONTROLS else ""
    known = study.find(comparison.world, CONTROLS.get(arm, arm), comparison.steps)
    record = known.get(hospital)
    if record is None:
        raise NoValueError("not run")
    if record["status"] != "ok":
        raise NoValueError(record["status"])
    return value(record, comparison.measure + control)


def judged(study: Study, family: dict[str, Sequence[Comparison]]) -> dict[str, list[Result]]:
    """Returns the results of a family with p values, corrected over all of it."""
    plain = {name: [compare(study, one) for one in own] for name, own in family.items()}
    every = [one for own in plain.values() for one in own]
    p_values = [
        sign_flip(list(one.differences.values())) if one.differences else Fraction(1)
        for one in every
    ]
    both = iter(zip(p_values, holm(p_values), strict=True))
    return {
        name: [Result(one.comparison, one.differences, one.missing, *next(both)) for one in own]
        for name, own in plain.items()
    }


def hypotheses(study: Study) -> dict[str, list[Result]]:
    return judged(study, dict(HYPOTHESES))


def secondary(study: Study) -> dict[str, list[Result]]:
    return judged(study, dict(SECONDARY))
