"""Findings that share a side: "left effusion and atelectasis", "opacity in the left base, which may
represent pneumonia"."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from dive.lexicon.detail_pairs import Detail, sides_of, with_sides
from dive.lexicon.detail_words import Item, vocabulary
from dive.lexicon.words import COMMA, JOINED, Words, word_set

JOINS = word_set("and or nor")
DETERMINERS = word_set("a an the this that these those its another some")
IS = word_set("is are was were remain remains appear appears")
NONE = word_set("no none not without absent never nor")
_WITH = word_set("with plus and some")
_BESIDE = word_set("associated adjacent overlying underlying accompanying adjoining surrounding")
# "opacity in the left base, which may represent atelectasis": two names of one thing
_ALTERNATIVES = word_set("or versus vs")
_LINKS = word_set(
    "or versus vs may might could can would be which this that likely most probably possibly"
    " probable possible for with of to as represent represents representing reflect reflects due"
    " consistent compatible suggest suggests suggesting suggestive concerning suspicious worrisome"
    " secondary related some combination"
)
MEANING = (
    "represent", "reflect", "consistent", "compatible", "suggest", "concerning", "suspicious",
    "worrisome", "due", "secondary", "versus", "vs", "likely", "probabl", "possibl",
)  # fmt: skip
_FAR = 40  # words between two findings


class Extent(NamedTuple):
    """A mention's extent: the first word of its noun phrase, its own first and last word."""

    start: int
    low: int
    high: int
    name: str
    cls: str


def share(
    found: list[list[Detail]],
    extents: Sequence[Extent],
    behind: Sequence[Sequence[Sequence[Item]]],
    words: Words,
    text: str,
) -> list[list[Detail]]:
    """The details, with those of one finding that also hold for another that is tied to it."""
    known = vocabulary()
    fits = [
        not known.shared.isdisjoint((one.cls, one.name)) and one.name not in known.midline
        for one in extents
    ]
    found = list(found)
    if not extents:
        return found
    ties = ["", *(_tie(a, b, words, text) for a, b in pairwise(extents))]
    ties = [tie if fits[k] and fits[k - 1] else "" for k, tie in enumerate(ties)]
    for k, tie in enumerate(ties):
        if not tie:
            continue
        if not sides_of(found[k]):
            found[k] = with_sides(found[k], sides_of(found[k - 1]))
        bare = extents[k].start == extents[k].low and not any(one.steps for one in found[k])
        steps = frozenset(step for one in found[k - 1] for step in one.steps)
        if tie == "or" and bare and steps:
            found[k] = [Detail(sides_of(found[k]), steps)]
    # "atelectasis and effusion at the left base"
    reaches = False
    for k in range(len(ties) - 1, 0, -1):
        reaches = reaches or any(item.sides for segment in behind[k] for item in segment)
        reaches = reaches and ties[k] not in ("", "with")
        if reaches and not sides_of(found[k - 1]):
            found[k - 1] = with_sides(found[k - 1], sides_of(found[k]))
    return found


def _tie(one: Extent, other: Extent, words: Words, text: str) -> str:
    """The tie of a mention to the one before: "or" where both name one thing ("or", "versus", a
    slash), "and", "is" ("which may represent"), "with", or "" without one."""
    low, high = one.high + 1, other.start
    between = words.words[low:high]
    separators = words.before[low : high + 1]
    if len(between) > _FAR or any(kind > COMMA for kind in separators):
        return ""
    near = all(kind == JOINED for kind in separators)
    if not between:
        slash = "/" in text[words.ends[high - 1] : words.starts[high]]
        return "or" if slash else "and" if separators == [COMMA] else ""
    if near and all(word in _ALTERNATIVES for word in between):
        return "or"
    if all(word in JOINS for word in between):
        return "and"
    if near and all(word in _WITH for word in between):
        return "with"
    phrase = words.words[high : other.low]
    if between[-1] in _WITH and any(word in _BESIDE for word in phrase):
        return "with"
    begin = len(between)
    while begin and between[begin - 1] in _LINKS | DETERMINERS | IS:
        begin -= 1
    meant = any(word.startswith(MEANING) for word in [*between[begin:], *phrase])
    return "is" if meant and NONE.isdisjoint(between) else ""
