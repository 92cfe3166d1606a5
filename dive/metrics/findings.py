"""Precision, recall and F1 of the findings that reports state, by the project's lexicon.

A report's mentions are reduced to one state per finding: stated as present in one place and absent
in another ("no left effusion; small right effusion"), it is present; uncertain comes in between.
The members of sets are counted, one set per report:

- `finding_*`: findings present. Uncertain ones count as present, as CheXbert F1 in its usual
  reading has it. Negated findings and statements of normality do not count. Side and severity are
  ignored: a small left effusion is a large right one.
- `finding_state_f1`: every finding that is mentioned, together with its state (present, uncertain,
  absent): findings stated as absent, and clear lungs, count too.
- `finding_side_f1`: findings present, each with its side: left, right, none given. "Bilateral" is
  left and right, two members.
- `finding_severity_f1`: findings present, each with its step of severity: trace, small or mild,
  moderate, large or severe, none given. Steps must agree exactly; "mild to moderate" is both.
- `finding_detail_f1`: findings present, each with its side and the severity on that side: "small
  right and moderate left effusions" is (effusion, right, small) and (effusion, left, moderate).

None given equals none given, and nothing else. All are micro averages: true positives, predicted
and reference members are summed over reports. Most normal reports share their negated statements:
`finding_state_f1` is the easier number.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dive.lexicon import lexicon_version
from dive.metrics.measure import Measure, f1, ratio

_RANK = {"negative": 0, "uncertain": 1, "positive": 2}
# one F1 per set, in the order of _sets; the first has precision and recall too
_F1 = (
    "finding_f1", "finding_state_f1", "finding_side_f1", "finding_severity_f1", "finding_detail_f1",
)  # fmt: skip
_NAMES = ("finding_precision", "finding_recall", *_F1)

Pair = tuple[str | None, str | None]


class Stated(NamedTuple):
    """What a report states, as the sets that the scores compare.

    Attributes:
        sets: one set per score, in the order of `_F1`.
        classes: name of finding -> its class, for all that is mentioned.
    """

    sets: tuple[frozenset[Any], ...]
    classes: Mapping[str, str]

    @property
    def present(self) -> frozenset[str]:
        """The findings stated as present or uncertain."""
        return self.sets[0]

    @property
    def details(self) -> frozenset[tuple[str, str | None, str | None]]:
        """The same findings as (name, side, severity)."""
        return self.sets[-1]


@dataclass(frozen=True)
class FindingMeasure(Measure):
    """The measure of findings, with what every prediction and every reference states."""

    predicted: Sequence[Stated]
    referenced: Sequence[Stated]


def states(text: str, mentions: Sequence[Any] | None = None) -> dict[str, str]:
    """name of finding -> "positive", "uncertain" or "negative", for all that `text` mentions.

    mentions: of `text`, where they have been found before.
    """
    return _states(_mentions(text) if mentions is None else mentions)


def sides_and_severities(
    text: str, mentions: Sequence[Any] | None = None
) -> dict[str, frozenset[Pair]]:
    """name of finding -> its sides and severities, for present and uncertain ones in `text`.

    A pair is (side, severity): "left", "right" or None, and a step of
    `dive.lexicon.detail_words.STEPS` or None. Mentions of one finding are merged: a
    severity without a side holds for the sides that have none of their own, and one mention may
    complete another.

    mentions: of `text`, where they have been found before.
    """
    return _sides_and_severities(text, _mentions(text) if mentions is None else mentions)


def _mentions(text: str) -> list[Any]:
    from dive.decisive.mentions import find_mentions  # the lexicon is compiled on first use

    return find_mentions(text)


def _states(mentions: Iterable[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for mention in mentions:
        polarity = str(mention.polarity)
        earlier = found.get(mention.name)
        if earlier is None or _RANK[polarity] > _RANK[earlier]:
            found[mention.name] = polarity
    return found


def _sides_and_severities(text: str, mentions: Sequence[Any]) -> dict[str, frozenset[Pair]]:
    from dive.lexicon.detail_words import STEPS
    from dive.lexicon.details import details

    steps_by_side: dict[str, dict[str | None, set[str]]] = {}
    for mention, own in zip(mentions, details(text, mentions), strict=True):
        if str(mention.polarity) == "negative":
            continue
        steps_of = steps_by_side.setdefault(mention.name, {})
        for sides, steps in own:
            for side in sides or (None,):
                steps_of.setdefault(side, set()).update(STEPS[step] for step in steps)
    return {name: frozenset(_pairs(steps_of)) for name, steps_of in steps_by_side.items()}


def _pairs(steps_of: dict[str | None, set[str]]) -> Iterable[Pair]:
    """Yield (side, step) for all sides; a step without a side belongs to sides without a step."""
    open_steps = steps_of.get(None, set())
    sides: list[str | None] = [side for side in steps_of if side is not None]
    left_over = all(steps_of[side] for side in sides) and open_steps - set().union(
        *(steps_of[side] for side in sides)
    )
    for side in sides:
        yield from ((side, step) for step in steps_of[side] or open_steps or (None,))
    if not sides:
        yield from ((None, step) for step in open_steps or (None,))
    elif left_over:
        yield from ((None, step) for step in left_over)


def finding_measure(
    predictions: Sequence[str],
    references: Sequence[str],
    cache: dict[str, Stated] | None = None,
) -> FindingMeasure:
    """The measure with true, predicted and reference counts of each set as its statistics.

    cache: what texts state that were read before; it grows by those that are read now.
    """
    cache = {} if cache is None else cache
    mine = [_stated(text, cache) for text in predictions]
    theirs = [_stated(text, cache) for text in references]
    rows = np.zeros((len(mine), 3 * len(_F1)), dtype=np.int64)
    for row, one, other in zip(rows, mine, theirs, strict=True):
        pairs = zip(one.sets, other.sets, strict=True)
        row[:] = [n for said, true in pairs for n in (len(said & true), len(said), len(true))]
    return FindingMeasure(rows, _scores, _variants(), _NAMES, mine, theirs)


def _variants() -> dict[str, str]:
    lexicon = f"the lexicon of dive {lexicon_version()}"
    left_out = "uncertain counted as present, negated and normal statements left out"
    with_side = "side: left / right / none given, bilateral is both"
    with_step = "severity: trace / small or mild / moderate / large or severe / none given, exact"
    members = {
        "finding_side_f1": f"(finding of {lexicon}, {with_side})",
        "finding_severity_f1": f"(finding of {lexicon}, {with_step})",
        "finding_detail_f1": f"(finding of {lexicon}, {with_side}, {with_step})",
    }
    plain = f"micro over findings of {lexicon}, {left_out}, side and severity not looked at"
    state = f"micro over (finding of {lexicon}, present / uncertain / absent), all mentions"
    return {
        **dict.fromkeys(("finding_precision", "finding_recall", "finding_f1"), plain),
        "finding_state_f1": state,
        **{name: f"micro over {what}, {left_out}" for name, what in members.items()},
    }


def _stated(text: str, cache: dict[str, Stated]) -> Stated:
    """What a report states; texts are read once."""
    if text not in cache:
        mentions = _mentions(text)
        found = _states(mentions)
        pairs = {
            (name, *one)
            for name, own in _sides_and_severities(text, mentions).items()
            for one in own
        }
        sets = (
            frozenset(name for name, state in found.items() if state != "negative"),
            frozenset(found.items()),
            _drop_unspecified((name, side) for name, side, _ in pairs),
            _drop_unspecified((name, step) for name, _, step in pairs),
            frozenset(pairs),
        )
        cache[text] = Stated(sets, {mention.name: mention.cls for mention in mentions})
    return cache[text]


def _drop_unspecified(members: Iterable[tuple[str, str | None]]) -> frozenset[Any]:
    """The members without "none given" where the same finding has something given."""
    every = set(members)
    specified = {name for name, what in every if what is not None}
    return frozenset(
        (name, what) for name, what in every if what is not None or name not in specified
    )


def _scores(totals: np.ndarray) -> dict[str, np.ndarray]:
    counts = [[totals[..., 3 * n + k] for k in range(3)] for n in range(len(_F1))]
    true, predicted, actual = counts[0]
    values = ratio(true, predicted), ratio(true, actual), *(f1(*one) for one in counts)
    return dict(zip(_NAMES, values, strict=True))
