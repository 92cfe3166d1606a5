"""The clauses of a report that state a finding, present or absent."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from dive.decisive.mentions import Mention
from dive.decisive.polarity import NEGATIVE
from dive.lexicon.markup import without_markup
from dive.lexicon.statements import RESTART
from dive.lexicon.words import COLON, COMMA, JOINED, QUERY, SEMICOLON, Words, split

_DENIALS = frozenset({"no", "without", "not", "negative", "neither", "absent"})
_CONTRASTS = frozenset({"but", "however", "although", "though", "while", "whereas"})
_LINKS = frozenset({"and", "with", "plus", "or", "also"})


class Clause(NamedTuple):
    """A clause that states findings, all of them present or all of them absent.

    words: in lower case, numbers as "#", from the clause's beginning to its end or its sentence's.
    spans: characters of each word. mentions: those that the clause states; never none.
    """

    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    mentions: tuple[Mention, ...]

    @property
    def present(self) -> bool:
        """Whether the findings are stated as present, or as uncertain."""
        return self.mentions[0].polarity != NEGATIVE


def clauses(text: str, mentions: Sequence[Mention]) -> list[Clause]:
    """The clauses of a report that state the mentions (all of its mentions, in its order).

    A clause begins with its sentence, after a semicolon, after a colon that its mention does not
    span ("Heart: no cardiomegaly"), after "but" and its like, at "without", and after a comma,
    "and" or "with" before "no", "not" or "there" ("the heart is normal, and | there is no
    effusion"). Two mentions of one sentence are parted further after a comma, "and", "with" or "or"
    between them where one is present, or one is a statement of normality: in "effusion and
    atelectasis" each is a choice of its own. A list of absent findings ("no effusion, pneumothorax
    or consolidation") stays one clause, which its one "no" decides.
    """
    words = split(without_markup(text))
    found: list[tuple[int, int, list[Mention]]] = []
    for first, stop in words.sentences:
        low = words.starts[first]
        high = words.ends[stop - 1]
        inside = [m for m in mentions if low <= m.start < high]
        if inside:
            found += _of_sentence(words, first, stop, inside)
    return [_clause(words, begin, end, own) for begin, end, own in found]


def _of_sentence(
    words: Words, first: int, stop: int, mentions: list[Mention]
) -> list[tuple[int, int, list[Mention]]]:
    parts: list[tuple[int, list[Mention]]] = []
    last: Mention | None = None
    after = first  # the word from which the next clause may begin
    for mention in mentions:
        at = bisect_right(words.starts, mention.start) - 1
        begin = _begin(words, after, at, last, mention)
        if begin is None and not parts:
            begin = first
        if begin is not None:
            parts.append((begin, [mention]))
        elif (parts[-1][1][0].polarity != NEGATIVE) == (mention.polarity != NEGATIVE):
            parts[-1][1].append(mention)
        else:  # nothing parts two of different polarity ("no change in effusion"): words are shared
            parts.append((parts[-1][0], [mention]))
        after, last = max(after, bisect_left(words.starts, mention.end)), mention
    ends = [begin for begin, _ in parts[1:]] + [stop]
    return [
        (begin, end if end > begin else stop, own)
        for (begin, own), end in zip(parts, ends, strict=True)
    ]


def _begin(words: Words, low: int, at: int, last: Mention | None, mention: Mention) -> int | None:
    """The last word in (low, at] at which a clause begins, for a mention at word `at`; None where
    the clause before goes on. `last` is the mention before."""
    openers = [i for i in range(low, at + 1) if _opens(words, i)]
    hard = [i for i in openers if _is_hard(words, i)]
    if hard:
        return hard[-1]
    if last is None or not openers:
        return None
    listed = last.polarity == mention.polarity == NEGATIVE
    if not listed or last.normal or mention.normal:
        return next((i for i in openers if words.words[i] in RESTART), openers[-1])
    return None


def _opens(words: Words, i: int) -> bool:
    """Whether a clause may begin at word i: the first after punctuation or a link."""
    word = words.words[i]
    if word == "without":
        return True
    if i == 0 or word in _LINKS or word in _CONTRASTS:
        return False
    return words.before[i] != JOINED or words.words[i - 1] in _LINKS | _CONTRASTS


def _is_hard(words: Words, i: int) -> bool:
    """Whether a clause begins at word i, which `_opens`, whatever is stated before it."""
    word, before = words.words[i], words.before[i]
    if word in _DENIALS or word == "there" or words.words[i - 1] in _CONTRASTS:
        return True
    return before in (SEMICOLON, COLON, QUERY) or before > COMMA


def _clause(words: Words, begin: int, end: int, mentions: list[Mention]) -> Clause:
    return Clause(
        tuple("#" if word.isdigit() else word for word in words.words[begin:end]),
        tuple(zip(words.starts[begin:end], words.ends[begin:end], strict=True)),
        tuple(mentions),
    )
