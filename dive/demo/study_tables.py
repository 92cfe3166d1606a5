"""The study's records as tables, written between markers of a page.

<!-- study: scores, main -->           every method: mean and standard deviation over runs
<!-- study: demo scores, main -->      of the methods that `dive demo` shows
<!-- study: differences, main -->      one change each: what it brings, run by run
<!-- end -->                           ends each
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any

from dive.errors import DiveError

from .methods import DEMO_METHODS, DIVE

Record = dict[str, Any]
SCORES = ("bleu4", "rouge_l", "style_f1", "concept_f1", "terminated", "length_ratio")
_HEADS = ("BLEU-4", "ROUGE-L", "style F1", "concept F1", "ended %", "length")
_COMPARED = SCORES[:1] + SCORES[2:5]

# What was changed, the method with it, the method without it.
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
)

# Two-sided 95% quantiles of Student's t with 1, 2, ... degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def scores(records: Sequence[Record]) -> str:
    """Mean and standard deviation over hospitals and seeds."""
    lines = [
        "| method | runs | " + " | ".join(_HEADS) + " |",
        "| --- | --- |" + " ---: |" * len(_HEADS),
    ]
    for name in dict.fromkeys(record["method"] for record in records):
        rows = [record for record in records if record["method"] == name]
        values = []
        for key in SCORES:
            numbers = [row[key] for row in rows]
            digits = 2 if key == "length_ratio" else 1
            text = f"{mean(numbers):.{digits}f}"
            if key != "length_ratio" and len(numbers) > 1:
                text += f" ± {stdev(numbers):.{digits}f}"
            values.append(text)
        label = f"**{name}**" if name == DIVE.name else name
        lines.append(f"| {label} | {len(rows)} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def demo_scores(records: Sequence[Record]) -> str:
    shown = {method.name for method in DEMO_METHODS}
    return scores([record for record in records if record["method"] in shown])


def differences(records: Sequence[Record]) -> str:
    """What each change brings: paired by hospital and seed.

    The interval is Student's t over the hospitals' means, since seeds of one hospital are not
    independent; behind it, in how many of the pairs the change was for the better.
    """
    lines = [
        "| change | " + " | ".join(_HEADS[SCORES.index(key)] for key in _COMPARED) + " |",
        "| --- |" + " ---: |" * len(_COMPARED),
    ]
    for label, with_it, without in DIFFERENCES:
        pairs = _pairs(records, with_it, without)
        if pairs:
            cells = [_difference(pairs, key) for key in _COMPARED]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _pairs(records: Sequence[Record], with_it: str, without: str) -> list[tuple[Record, Record]]:
    """Of one hospital and seed each; what is not trained is the same for all seeds."""
    others = {(r["hospital"], r["seed"]): r for r in records if r["method"] == without}
    found = []
    for record in records:
        if record["method"] == with_it:
            place = record["hospital"]
            other = others.get((place, record["seed"])) or others.get((place, None))
            if other is not None:
                found.append((record, other))
    return found


def _difference(pairs: Sequence[tuple[Record, Record]], key: str) -> str:
    by_hospital: dict[int, list[float]] = {}
    for one, other in pairs:
        by_hospital.setdefault(one["hospital"], []).append(one[key] - other[key])
    gains = [gain for own in by_hospital.values() for gain in own]
    better = f"({sum(gain > 0 for gain in gains)} of {len(gains)})"
    means = [mean(own) for own in by_hospital.values()]
    if len(means) < 2:
        return f"{mean(means):+.1f} {better}"
    half = _T95[len(means) - 2] * stdev(means) / sqrt(len(means))
    return f"{mean(means):+.1f} ± {half:.1f} {better}"


_MARKED = re.compile(r"(<!-- study: ([\w ]+), ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_TABLES = {"scores": scores, "demo scores": demo_scores, "differences": differences}


def fill(page: str, records: Sequence[Record]) -> str:
    """The page with a table between each pair of markers."""
    if not _MARKED.search(page):
        raise DiveError("the page has no <!-- study: scores, PART --> ... <!-- end -->")

    def made(match: re.Match[str]) -> str:
        begin, kind, part, end = match.groups()
        own = [record for record in records if record["part"] == part]
        if kind not in _TABLES or not own:
            parts = ", ".join(dict.fromkeys(record["part"] for record in records))
            raise DiveError(
                f"no table {kind!r} of part {part!r}: there are {', '.join(_TABLES)} of {parts}"
            )
        return f"{begin}{_TABLES[kind](own)}\n{end}"

    return _MARKED.sub(made, page)
