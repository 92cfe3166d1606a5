"""What the items around one finding come to: its sides, and the severity on each.

The words of a finding come in groups: those inside it, those before it, those behind it; "and" and
commas part a group into segments ("small right and moderate left effusions").
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dive.lexicon.detail_words import STEPS, Item, vocabulary


class Detail(NamedTuple):
    """Sides ("left", "right") and steps (indices of STEPS) that are said together; empty: none."""

    sides: frozenset[str]
    steps: frozenset[int]


Segments = Sequence[Sequence[Item]]


def settled(
    name: str, inside: Sequence[Item], before: Segments, behind: Segments, context: Sequence[Item]
) -> list[Detail]:
    """The details of a mention of the finding `name`; `context` holds where its own words say
    nothing."""
    own = _Readable(name, [item for group in (inside, *before, *behind) for item in group])
    within = own.detail(inside)
    front = [Detail(d.sides | within.sides, d.steps | within.steps) for d in _paired(own, before)]
    found = [d for d in (*(front or [within]), *_paired(own, behind)) if d.sides or d.steps]
    sides, steps = _Readable(name, context).detail(context)
    if sides_of(found):
        sides = frozenset()
    if any(one.steps for one in found):
        steps = frozenset()
    if not sides and not steps:
        return completed(found)
    return [Detail(d.sides or sides, d.steps or steps) for d in found or [Detail(sides, steps)]]


def completed(found: list[Detail]) -> list[Detail]:
    """A step without a side is that of the mention's sides that have none ("the left effusion is
    small")."""
    steps = frozenset(step for one in found if not one.sides for step in one.steps)
    if not steps or not any(one.sides and not one.steps for one in found):
        return found
    return [Detail(one.sides, one.steps or steps) for one in found if one.sides]


class _Readable:
    """How the items of one finding are read: what is given by its place, or as a measure, counts
    only where no word of side, or of severity, does."""

    def __init__(self, name: str, items: Iterable[Item]) -> None:
        known, items = vocabulary(), list(items)
        self.sided = name not in known.midline
        self.strong = any(item.sides and not item.weak for item in items)
        self.graded = any(item.step is not None for item in items)
        self.limits = known.sizes.get(name)

    def detail(self, items: Iterable[Item]) -> Detail:
        """What one segment says."""
        sides: set[str] = set()
        steps: set[int] = set()
        for item in items:
            if self.sided and not (item.weak and self.strong):
                sides |= item.sides
            if item.step is not None:
                steps.add(item.step)
            elif item.size is not None and self.limits and not self.graded:
                size = item.size
                steps.add(next((s for limit, s in self.limits if size < limit), len(STEPS) - 1))
        return Detail(frozenset(sides), frozenset(steps))


def _paired(own: _Readable, segments: Segments) -> list[Detail]:
    """The segments of one group, so that each has a side where any has."""
    found: list[Detail] = []
    waiting: frozenset[int] = frozenset()
    parts = [own.detail(s) for s in segments if s]
    for n, (sides, steps) in enumerate(parts):
        if not sides and n + 1 < len(parts) and parts[n + 1].sides and not parts[n + 1].steps:
            waiting |= steps  # "moderate, on the right"
            continue
        if sides and not steps:
            # "small left and right effusions"
            steps = waiting or (found[-1].steps if found and found[-1].sides else steps)
        elif not sides and found and found[-1].sides and not found[-1].steps:
            found[-1] = found[-1]._replace(steps=steps)  # "on the right, moderate"
            continue
        waiting = frozenset()
        found.append(Detail(sides, steps))
    return found


def sides_of(found: Iterable[Detail]) -> frozenset[str]:
    """All sides, together."""
    return frozenset(side for one in found for side in one.sides)


def with_sides(found: list[Detail], sides: frozenset[str]) -> list[Detail]:
    """The same, on these sides."""
    if not sides:
        return found
    return [d._replace(sides=sides) for d in found] or [Detail(sides, frozenset())]
