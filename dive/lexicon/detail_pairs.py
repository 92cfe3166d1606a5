"""The sides of a finding and the severity on each, from the items around it.

The words of a finding come in groups: those inside it, those before it, those after it; "and" and
commas part a group into segments ("small right and moderate left effusions").
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from dive.lexicon.detail_words import STEPS, Item, vocabulary


class Detail(NamedTuple):
    """Sides ("left", "right") and steps (indices of STEPS) that belong together; empty: none."""

    sides: frozenset[str]
    steps: frozenset[int]


Segments = Sequence[Sequence[Item]]


class _Partial(NamedTuple):
    """An unfinished detail; `now`: it replaces other ones."""

    sides: frozenset[str]
    steps: frozenset[int]
    now: bool = False


def combined(
    name: str,
    inside: Sequence[Item],
    before: Segments,
    behind: Segments,
    context: Sequence[Item],
    earlier: Sequence[Detail] = (),
) -> list[Detail]:
    """The details of a mention of the finding `name`.

    `context` applies where its own words have no details; `earlier`: those of sentences before.
    """
    own = _Readable(name, [item for group in (inside, *before, *behind) for item in group])
    within = own.detail(inside)
    front = [
        _Partial(d.sides | within.sides, d.steps | within.steps, d.now or within.now)
        for d in _paired(own, before)
    ] or [within]
    is_open = bool(front[-1].sides and not front[-1].steps)
    every = [*(_Partial(*one) for one in earlier), *front, *_paired(own, behind, is_open)]
    found = _current([d for d in every if d.sides or d.steps])
    sides, steps, _ = _Readable(name, context).detail(context)
    if sides_of(found):
        sides = frozenset()
    if any(one.steps for one in found):
        steps = frozenset()
    if not sides and not steps:
        return completed(found)
    return [Detail(d.sides or sides, d.steps or steps) for d in found or [Detail(sides, steps)]]


def _current(found: Sequence[_Partial]) -> list[Detail]:
    """The details without steps that a later one replaces: "large left effusion, now small"."""
    kept = list(found)
    for new in [one for one in found if one.now]:
        for n, (sides, steps, now) in enumerate(kept):
            if now or not steps:
                continue
            if not new.sides or not sides:
                kept[n] = _Partial(sides, frozenset())
            elif sides & new.sides:
                kept[n] = _Partial(sides - new.sides, steps)
    whole = zip(kept, found, strict=True)
    return [Detail(d.sides, d.steps) for d, old in whole if d.sides or (d.steps and not old.sides)]


def completed(found: list[Detail]) -> list[Detail]:
    """Give a step without a side to the sides without a step ("the left effusion is small")."""
    steps = frozenset(step for one in found if not one.sides for step in one.steps)
    if not steps or not any(one.sides and not one.steps for one in found):
        return found
    return [Detail(one.sides, one.steps or steps) for one in found if one.sides]


class _Readable:
    """The reading of the items of one finding.

    A side by location counts only without a word of side, a measure only without one of severity.
    """

    def __init__(self, name: str, items: Iterable[Item]) -> None:
        known, items = vocabulary(), list(items)
        self.sided = name not in known.midline
        self.strong = any(item.sides and not item.weak for item in items)
        self.graded = any(item.step is not None for item in items)
        self.limits = known.sizes.get(name)

    def detail(self, items: Iterable[Item]) -> _Partial:
        """The detail of one segment."""
        sides: set[str] = set()
        steps: set[int] = set()
        now = False
        for item in items:
            now = now or item.now
            if self.sided and not (item.weak and self.strong):
                sides |= item.sides
            if item.step is not None:
                steps.add(item.step)
            elif item.size is not None and self.limits and not self.graded:
                size = item.size
                steps.add(next((s for limit, s in self.limits if size < limit), len(STEPS) - 1))
        return _Partial(frozenset(sides), frozenset(steps), now)


def _paired(own: _Readable, segments: Segments, is_open: bool = False) -> list[_Partial]:
    """The details of one group's segments, each with a side where any has one.

    `is_open`: the group before ends with a side that has no step yet.
    """
    found: list[_Partial] = []
    waiting = _Partial(frozenset(), frozenset())
    sides_first = False  # "right, large, left, small"
    parts = [own.detail(part) for s in segments for part in _by_sides(s) if part]
    for n, (sides, steps, now) in enumerate(parts):
        if not sides and found and found[-1].sides and not found[-1].steps:
            found[-1] = _Partial(found[-1].sides, steps, now)  # "on the right, moderate"
            sides_first = True
            continue
        alone = n + 1 < len(parts) and parts[n + 1].sides and not parts[n + 1].steps
        if not sides and alone and not (is_open and not n):
            # "moderate, on the right"
            waiting = _Partial(sides, waiting.steps | steps, waiting.now or now)
            continue
        if sides and not steps:
            if waiting.steps:
                _, steps, now = waiting
            elif found and found[-1].sides and not sides_first:
                _, steps, now = found[-1]  # "small left and right effusions"
        waiting = _Partial(frozenset(), frozenset())
        found.append(_Partial(sides, steps, now))
    return found


def _by_sides(segment: Sequence[Item]) -> list[Sequence[Item]]:
    """A segment, cut where it lists sides without punctuation: "right large left small"."""
    groups: list[list[Item]] = []
    for item in segment:
        if groups and not item.sides and not groups[-1][-1].sides:
            groups[-1].append(item)  # "small to moderate"
        else:
            groups.append([item])
    kinds = [bool(group[0].sides) for group in groups]
    if len(groups) < 4 or len(groups) % 2 or any(a == b for a, b in pairwise(kinds)):
        return [segment]
    return [[*groups[n], *groups[n + 1]] for n in range(0, len(groups), 2)]


def sides_of(found: Iterable[Detail]) -> frozenset[str]:
    """All sides of the details."""
    return frozenset(side for one in found for side in one.sides)


def with_sides(found: list[Detail], sides: frozenset[str]) -> list[Detail]:
    """The same details on these sides."""
    if not sides:
        return found
    return [d._replace(sides=sides) for d in found] or [Detail(sides, frozenset())]
