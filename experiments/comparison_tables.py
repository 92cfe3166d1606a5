"""The records of compare_methods.py as tables, written between the markers of a page (pages.py).

<!-- experiment: scores, main -->             every method: mean and standard deviation over runs
<!-- experiment: demo scores, main -->        of the methods that `dive demo` shows
<!-- experiment: differences, main -->        one change each: its size, hospitals, exact p
<!-- experiment: demo differences, main -->   between methods that `dive demo` shows
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from statistics import mean, stdev

from dive.demo.methods import DEMO_METHODS, DIVE
from dive.errors import DiveError
from experiments.exact_test import as_text, half_interval, holm, sign_flip
from experiments.record_files import Record

SCORES = ("bleu4", "rouge_l", "style_f1", "concept_f1", "terminated", "length_ratio")
_HEADS = ("BLEU-4", "ROUGE-L", "style F1", "concept F1", "ended %", "length")
COMPARED = SCORES[:1] + SCORES[2:5]

# The change, the method with it, the method without it.
DIFFERENCES = (
    ("DIVE in place of no adapter", "DIVE", "zero-shot"),
    ("DIVE in place of the 3-shot prompt", "DIVE", "3-shot in context"),
    ("DIVE in place of LIVE", "DIVE", "LIVE"),
    ("state-conditioned steering, for fixed vectors", "DIVE", "DIVE, fixed vectors"),
    ("the same, rank 1", "DIVE, rank 1", "DIVE, fixed vectors"),
    ("rank 8, for rank 1", "DIVE", "DIVE, rank 1"),
    ("decisive weights", "DIVE", "DIVE, uniform weights"),
    ("the same, no teacher", "DIVE, no teacher", "DIVE, no teacher, uniform weights"),
    ("the same, fixed vectors", "DIVE, fixed vectors", "DIVE, fixed vectors, uniform weights"),
    ("weight on modifiers", "DIVE", "DIVE, no modifiers"),
    ("no weight on negated mentions", "DIVE", "DIVE, negated mentions too"),
    ("weight on the end", "DIVE", "DIVE, no end-token weight"),
    ("KL to the teacher", "DIVE", "DIVE, no teacher"),
    ("the same, uniform weights", "DIVE, uniform weights", "DIVE, no teacher, uniform weights"),
    ("the patient's own image, for another's", "DIVE", "DIVE, shown another patient's image"),
    # on the development hospitals: each choice against the alternatives
    ("rate 0.025, for 0.006", "DIVE, rate 0.025", "DIVE, rate 0.006"),
    ("rate 0.025, for 0.05", "DIVE, rate 0.025", "DIVE, rate 0.05"),
    ("weights 2.5, for 1", "DIVE, weights 2.5", "DIVE, weights 1"),
    ("weights 2.5, for 4.5", "DIVE, weights 2.5", "DIVE, weights 4.5"),
    ("KL 0.5, for 0.2", "DIVE, weights 2.5", "DIVE, KL 0.2"),
    ("KL 0.5, for 1", "DIVE, weights 2.5", "DIVE, KL 1"),
    ("KL 0.5, for no teacher", "DIVE, weights 2.5", "DIVE, no teacher"),
    ("modifiers on, for off", "DIVE, weights 2.5", "DIVE, no modifiers"),
    ("fixed vectors: rate 0.2, for 0.1", "fixed vectors, rate 0.2", "fixed vectors, rate 0.1"),
    ("fixed vectors: rate 0.2, for 0.05", "fixed vectors, rate 0.2", "fixed vectors, rate 0.05"),
    ("LIVE: rate 0.1, for 0.05", "LIVE, rate 0.1", "LIVE, rate 0.05"),
    ("LIVE: rate 0.1, for 0.02", "LIVE, rate 0.1", "LIVE, rate 0.02"),
)


def scores(records: Sequence[Record]) -> str:
    """Returns the table of mean and standard deviation over hospitals and seeds."""
    lines = [
        "| method | runs | " + " | ".join(_HEADS) + " |",
        "| --- | --- |" + " ---: |" * len(_HEADS),
    ]
    for name in dict.fromkeys(record["method"] for record in records):
        own = [record for record in records if record["method"] == name]
        values = []
        for key in SCORES:
            numbers = [record[key] for record in own]
            digits = 2 if key == "length_ratio" else 1
            text = f"{mean(numbers):.{digits}f}"
            if key != "length_ratio" and len(numbers) > 1:
                text += f" ± {stdev(numbers):.{digits}f}"
            values.append(text)
        label = f"**{name}**" if name == DIVE.name else name
        lines.append(f"| {label} | {len(own)} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def demo_scores(records: Sequence[Record]) -> str:
    shown = {method.name for method in DEMO_METHODS}
    return scores([record for record in records if record["method"] in shown])


@dataclass(frozen=True)
class Difference:
    """One measure of one change, paired by hospital and seed.

    The test is over the means of hospitals, since seeds of one hospital are not independent.
    """

    size: float
    half: float | None  # of the 95% interval, Student's t; None for one hospital
    higher: int  # hospitals in which it is above 0
    hospitals: int
    p: Fraction
    corrected: Fraction

    def __str__(self) -> str:
        spread = "" if self.half is None else f" ± {self.half:.1f}"
        counted = f"{self.higher} of {self.hospitals}"
        return (
            f"{self.size:+.1f}{spread}; {counted}; p {as_text(self.p)}, {as_text(self.corrected)}"
        )


def measured(records: Sequence[Record]) -> list[tuple[str, str, str, list[Difference]]]:
    """Returns each change, the method with it, without it, and the difference in each measure.

    The records of one part are one family: Holm's correction is over all changes and measures.
    """
    found = [
        (change, [_by_hospital(pairs, key) for key in COMPARED])
        for change in DIFFERENCES
        if (pairs := _pairs(records, *change[1:]))
    ]
    plain = [sign_flip(means) for _, measures in found for means in measures]
    both = iter(zip(plain, holm(plain), strict=True))
    return [
        (*change, [_difference(means, *next(both)) for means in measures])
        for change, measures in found
    ]


def differences(records: Sequence[Record]) -> str:
    """Returns the table of all changes, and under it the number of tests."""
    found = measured(records)
    every = [one for *_, measures in found for one in measures]
    if not every:
        raise DiveError(
            "no two methods of these records are compared (comparison_tables.DIFFERENCES)"
        )
    smallest = min(every, key=lambda one: (one.p, one.corrected))
    return (
        f"{_compared_table(found)}\n\n{len(every)} tests, corrected together; the smallest p is "
        f"{as_text(smallest.p)}, after correction {as_text(smallest.corrected)}."
    )


def demo_differences(records: Sequence[Record]) -> str:
    """Returns the changes between methods of `dive demo`, corrected for the whole part."""
    shown = {method.name for method in DEMO_METHODS}
    return _compared_table([one for one in measured(records) if {one[1], one[2]} <= shown])


def _compared_table(changes: Sequence[tuple[str, str, str, list[Difference]]]) -> str:
    lines = [
        "| change | " + " | ".join(_HEADS[SCORES.index(key)] for key in COMPARED) + " |",
        "| --- |" + " ---: |" * len(COMPARED),
        *(
            f"| {label} | " + " | ".join(map(str, measures)) + " |"
            for label, _, _, measures in changes
        ),
    ]
    return "\n".join(lines)


def _pairs(records: Sequence[Record], with_it: str, without: str) -> list[tuple[Record, Record]]:
    """Pairs records by hospital and seed; a method without training is the same for all seeds."""
    others = {(r["hospital"], r["seed"]): r for r in records if r["method"] == without}
    found = []
    for record in records:
        if record["method"] == with_it:
            hospital = record["hospital"]
            other = others.get((hospital, record["seed"])) or others.get((hospital, None))
            if other is not None:
                found.append((record, other))
    return found


def _by_hospital(pairs: Sequence[tuple[Record, Record]], key: str) -> list[Fraction]:
    """Returns the mean difference of each hospital, exact in the decimal digits of the records."""
    differences: dict[int, list[Fraction]] = {}
    for one, other in pairs:
        difference = Fraction(str(one[key])) - Fraction(str(other[key]))
        differences.setdefault(one["hospital"], []).append(difference)
    return [sum(own, Fraction(0)) / len(own) for own in differences.values()]


def _difference(means: Sequence[Fraction], p: Fraction, corrected: Fraction) -> Difference:
    higher = sum(value > 0 for value in means)
    return Difference(float(mean(means)), half_interval(means), higher, len(means), p, corrected)


_TABLES = {
    "scores": scores,
    "demo scores": demo_scores,
    "differences": differences,
    "demo differences": demo_differences,
}


def tables(records: Sequence[Record]) -> dict[str, Callable[[], str]]:
    """Returns what each marker of a page stands for, by its name."""
    parts = dict.fromkeys(record["part"] for record in records)
    return {
        f"{kind}, {part}": partial(make, [one for one in records if one["part"] == part])
        for part in parts
        for kind, make in _TABLES.items()
    }
