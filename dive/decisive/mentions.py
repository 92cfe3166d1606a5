"""The findings that a report mentions: read with the lexicon, or from a RadGraph annotation."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from dive.decisive.asking_sections import asking_sections
from dive.decisive.polarity import (
    NEGATIVE,
    POSITIVE,
    UNCERTAIN,
    Found,
    polarities,
)
from dive.lexicon import OTHER, Entry, Lexicon, default_lexicon
from dive.lexicon.checklist import SILENT, answered, answers, with_answers
from dive.lexicon.markup import without_markup
from dive.lexicon.terms import Match, longest_first
from dive.lexicon.words import COLON, split
from dive.radgraph import Annotation, entity_kind, entity_spans


class Mention(NamedTuple):
    """A finding in a text.

    [start, end) are its outer characters; `spans` are the characters of its own words, more than
    one range where others stand in between ("heart is mildly enlarged"). `name` is the lexicon's
    entry, `cls` its CheXpert observation or "Other", `polarity` is "positive", "negative" or
    "uncertain". A statement of normality ("lungs are clear") has class "No Finding" and is
    negative; `normal` says that the words themselves state it.
    """

    start: int
    end: int
    name: str
    cls: str
    polarity: str
    spans: tuple[tuple[int, int], ...]
    normal: bool = False


def find_mentions(text: str, lexicon: Lexicon | None = None) -> list[Mention]:
    """The findings that a report mentions, in its order; no two share a word.

    Sections that state nothing about the image (indication, history, comparison) are read too:
    findings that they name as present are uncertain.
    """
    lexicon = default_lexicon() if lexicon is None else lexicon
    automaton = lexicon.automaton
    text = without_markup(text)
    words = split(text)
    asking = asking_sections(text)
    mentions: list[Mention] = []
    free = [True] * len(words.words)

    terms = automaton.matches(words.words, words.joined, 0, len(words.words))
    firsts = [term.first for term in terms]

    def within(first: int, stop: int) -> list[Match]:
        among = terms[bisect_left(firsts, first) : bisect_left(firsts, stop)]
        return [term for term in among if term.end <= stop]

    def names_finding(start: int, stop: int) -> bool:
        return bool(within(bisect_left(words.starts, start), bisect_left(words.starts, stop)))

    for first, stop, answer in with_answers(words, answers(text, names_finding)):
        matches = _without_headings(within(first, stop), words.before)
        if not matches:
            continue
        found = [f for match in longest_first(matches) if not (f := _found(match)).ignore]
        for one, polarity in zip(found, polarities(words, first, stop, found, free), strict=True):
            if answer is not None:
                if answer.state == SILENT:
                    continue
                polarity = answered(polarity, one.normal, answer.state)
            entry = one.match.value
            assert isinstance(entry, Entry)
            spans = _spans(one.match.marked, words.starts, words.ends, words.joined)
            start, end = spans[0][0], spans[-1][1]
            if polarity == POSITIVE and any(a <= start < b for a, b in asking):
                polarity = UNCERTAIN
            mentions.append(
                Mention(start, end, entry.name, entry.cls, polarity, spans, entry.normal)
            )
    return mentions


def _without_headings(matches: list[Match], before: Sequence[int]) -> list[Match]:
    """The matches without those that need no words of a heading: "Left lung: opacity"."""
    kept = []
    for match in matches:
        colon = next((i for i in match.words[1:] if before[i] == COLON), None)
        if colon is None or not any(
            other.value is match.value and other.first >= colon and other.end == match.end
            for other in matches
        ):
            kept.append(match)
    return kept


def _found(match: Match) -> Found:
    entry = match.value
    assert isinstance(entry, Entry)
    return Found(match, entry.name, entry.normal, entry.uncertain, entry.ignore)


def _spans(
    marked: Sequence[int], starts: list[int], ends: list[int], joined: list[bool]
) -> tuple[tuple[int, int], ...]:
    """Characters of the marked words; neighbours share one span."""
    spans = [(starts[marked[0]], ends[marked[0]])]
    for last, index in pairwise(marked):
        if index == last + 1 and joined[index]:
            spans[-1] = (spans[-1][0], ends[index])
        else:
            spans.append((starts[index], ends[index]))
    return tuple(spans)


def radgraph_mentions(
    text: str, annotation: Annotation, lexicon: Lexicon | None = None
) -> list[Mention]:
    """The observations of a RadGraph annotation, in the report's order; class "Other".

    Anatomy alone is no finding. To RadGraph a statement of normality ("clear", "normal") is an
    observation that is present: where the lexicon reads normality, the mention is negative here, as
    in `find_mentions`.

    Raises:
        DiveError: the annotation is of another text, or has a label of no RadGraph model.
    """
    said = [m.spans for m in find_mentions(text, lexicon) if m.cls == "No Finding"]
    normal = [span for spans in said for span in spans]
    entities = annotation["entities"].values()
    mentions = []
    for (start, end, label), entity in zip(entity_spans(text, annotation), entities, strict=True):
        kind, state = entity_kind(label)
        if kind != "observation":
            continue
        well = state == POSITIVE and any(a < end and start < b for a, b in normal)
        state = NEGATIVE if well else state
        mentions.append(Mention(start, end, entity["tokens"], OTHER, state, ((start, end),), well))
    return sorted(mentions)
