"""A report read for the page: its text in pieces, and each finding beside the reference's.

The lexicon reads both sides, as it does for the finding scores (`dive.metrics.findings`): a finding
is there if it is stated as present or uncertain. Outcomes:

- hit: both have it, with the same sides and steps of severity;
- side, severity, both: both have it, and these differ ("none given" differs from a given one);
- missed: the reference alone has it; invented: the report alone has it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dive.decisive.mentions import Mention, find_mentions
from dive.lexicon.detail_words import STEPS
from dive.lexicon.modifiers import widen
from dive.metrics.findings import Pair, sides_and_severities, states
from dive.page.schema import Outcome, Piece

WRONG: tuple[Outcome, ...] = ("side", "severity", "both")
OUTCOMES: tuple[Outcome, ...] = ("hit", *WRONG, "missed", "invented")


@dataclass(frozen=True)
class Reading:
    """One text as the lexicon reads it.

    Attributes:
        text: as it was written.
        mentions: the findings that it names, in its order.
        states: name -> "positive", "uncertain" or "negative".
        details: name -> its (side, step) pairs, for those that are not negative.
    """

    text: str
    mentions: Sequence[Mention]
    states: dict[str, str]
    details: dict[str, frozenset[Pair]]


def read(text: str) -> Reading:
    """The reading of a report."""
    mentions = find_mentions(text)
    return Reading(text, mentions, states(text, mentions), sides_and_severities(text, mentions))


def pieces(reading: Reading, index_of: dict[str, int]) -> list[Piece]:
    """The text in pieces that joined are the text again; index_of: index of each finding's name.

    The words of a finding take their modifiers with them ("small left pleural effusion"), as far as
    these belong to no other finding.
    """
    spans = sorted(
        (start, end, index_of[mention.name], mention.polarity)
        for mention in reading.mentions
        for start, end in mention.spans
    )
    text, found, done = reading.text, list[Piece](), 0
    for number, (start, end, finding, state) in enumerate(spans):
        low, high = widen(text, start, end)
        following = spans[number + 1][0] if number + 1 < len(spans) else len(text)
        low, high = max(low, done), min(high, following)
        if low > done:
            found.append(text[done:low])
        found.append([text[low:high], finding, str(state)])
        done = high
    if done < len(text):
        found.append(text[done:])
    return found


def outcomes(truth: Reading, own: Reading) -> dict[str, Outcome]:
    """name of finding -> its outcome, for all that either text states; the reference's first."""
    found: dict[str, Outcome] = {}
    for name, details in truth.details.items():
        found[name] = _compared(details, own.details[name]) if name in own.details else "missed"
    for name in own.details:
        if name not in truth.details:
            found[name] = "invented"
    return found


def _compared(truth: frozenset[Pair], own: frozenset[Pair]) -> Outcome:
    if truth == own:
        return "hit"
    side = {side for side, _ in truth} != {side for side, _ in own}
    severity = {step for _, step in truth} != {step for _, step in own}
    if side == severity:  # both, or the same ones paired otherwise
        return "both"
    return "side" if side else "severity"


def in_words(details: Iterable[Pair] | None) -> str:
    """Sides and severities in words: "left, small; right, moderate"; "" where none is given."""
    order: dict[Any, int] = {step: number for number, step in enumerate(STEPS)}
    ordered = sorted(details or (), key=lambda pair: (pair[0] or "", order.get(pair[1], -1)))
    return "; ".join(filter(None, (", ".join(filter(None, pair)) for pair in ordered)))
