"""Findings that are answered and not stated: "Pneumothorax: No", "effusion (+)", "[x] Fracture".

The answer to a heading follows a colon, a dash, a question mark or a tab, or is in brackets, with
nothing else before the next punctuation or the end of the line: in "Pleura: no effusion" the "no"
answers nothing, it denies the effusion. An answered heading is read apart from the text around it,
so that no answer has an effect on the next line.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from typing import NamedTuple

from dive.lexicon.checkbox_answers import (
    ANSWER,
    ASKED,
    BARE,
    CHOICE,
    JOINED,
    LEFT_OPEN,
    LISTED,
    PART_OF_SIDED,
    SIDED,
    SIGNED,
    TICK_ENDS,
    TICKED,
    UNFILLED,
)
from dive.lexicon.words import END, Words

POSITIVE, NEGATIVE, UNCERTAIN = "positive", "negative", "uncertain"
SILENT = ""  # the heading has no answer


class Answer(NamedTuple):
    """An answered heading: characters [start, stop) of the heading, [stop, end) of the answer.

    `state` is "positive", "negative", "uncertain", or "" where the form was left empty.
    """

    start: int
    stop: int
    end: int
    state: str


_TICK_STATES = dict.fromkeys("xX✓✔*+☑☒", POSITIVE) | dict.fromkeys("-−✗✘", NEGATIVE)
_EDGE = re.compile(r"[\n;|\t{(\[]|\)(?=,|\s+\w)|[.!?](?=\s)|\s/\s| {2,}|\s[-–—]\s|,(?=\s)")
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|shows?|demonstrates?|reveals?|there|appears?|remains?|may"
    r"|might|could|can|cannot|suggests?|represents?|seen)\b",
    re.IGNORECASE,
)
_WORDS = re.compile(r"\w+")
_LIST_ENDS = re.compile(r"\n|\.(?=\s|$)|;(?=[^\n;.]*:)")
_CELL_ENDS = re.compile(r"[\n;|\t)\]]|[.!](?=\s|$)| {2,}|,\s|\s/\s")
_LONGEST = 9  # words of a heading
_WINDOW = 200  # characters in which its beginning is searched
_WRAPPED = 50  # characters; a longer line may have been wrapped
_DENIED = re.compile(r"\b(?:no|not|without|nor|neither|denies)\b", re.IGNORECASE)
# "lungs are clear, with no" at the end of a wrapped line
_GOES_ON = frozenset(
    ("and", "or", "nor", "but", "with", "of", "the", "a", "is", "are", "for", "in")
)
_SIZED = re.compile(
    r"\b(?:mild|moderate|severe|small|large|tiny|trace|stable|unchanged|left|right|bilateral|new"
    r"|old|with|without|no)\b",
    re.IGNORECASE,
)
_REPEATS = re.compile(r"[ \t]{3,}|([=|._*…-])\1{4,}")  # as in forms filled with dots


Names = Callable[[int, int], bool]  # whether characters [start, stop) of a text name a finding


def answers(text: str, names_finding: Names) -> list[Answer]:
    """The answered headings of a text, in its order, none inside another."""
    short, positions = _without_repeats(text)
    if len(short) < len(text):
        inner = answers(short, lambda a, b: names_finding(positions[a], positions[b]))
        return [
            Answer(positions[one.start], positions[one.stop], positions[one.end], one.state)
            for one in inner
        ]
    found: list[Answer] = []
    position = 0
    for match, state in sorted(_candidates(text), key=lambda one: (one[0].start(), -one[0].end())):
        if match.start() < position:
            continue
        start = _heading(text, position, match.start(), "?" in match.group(), names_finding)
        if start is None or (_asks(match) and names_finding(match.end(), _cell_end(text, match))):
            continue
        found.append(Answer(start, match.start(), match.end(), state))
        position = match.end()
    apart: list[Answer] = []
    # a box after a word may belong to the next one, or to a choice, so it is taken last
    leading, behind = _ticked(text, names_finding)
    for one in [*leading, *_listed(text), *found, *behind]:
        at = bisect_left(apart, one)  # those taken are sorted, so its neighbours decide
        behind_last = at == 0 or apart[at - 1].end <= one.start
        if behind_last and (at == len(apart) or one.end <= apart[at].start):
            apart.insert(at, one)
    return apart


def with_answers(words: Words, found: Iterable[Answer]) -> Iterator[tuple[int, int, Answer | None]]:
    """Sentences as ranges of words, with the answered headings as sentences of their own.

    The words of an answer are in none of them.
    """
    bounds = [
        (bisect_left(words.starts, a.start), bisect_left(words.starts, a.stop),
         bisect_left(words.starts, a.end), a)
        for a in found
    ]  # fmt: skip
    k = done = 0
    for first, stop in words.sentences:
        first = max(first, done)
        while k < len(bounds) and bounds[k][0] < stop:
            begin, end, behind, answer = bounds[k]
            for start in (begin, behind):  # punctuation before it belonged to the answer
                if start < len(words.before):
                    words.before[start], words.joined[start] = END, False
            if first < begin:
                yield first, begin, None
            yield begin, end, answer
            first = done = behind
            k += 1
        if first < stop:
            yield first, stop, None


def answered(polarity: str, normal: bool, state: str) -> str:
    """The polarity of a heading's mention, read as `polarity` alone and answered by `state`."""
    if state == NEGATIVE:
        return POSITIVE if normal else NEGATIVE
    return UNCERTAIN if state == UNCERTAIN and polarity == POSITIVE else polarity


def _state(groups: dict[str, str | None]) -> str:
    """The state that a match's named groups stand for."""
    kinds = {name.rpartition("_")[2] for name, text in groups.items() if text}
    if kinds & {"maybe", "doubt"}:
        return UNCERTAIN
    if "no" in kinds:
        return NEGATIVE
    return POSITIVE if kinds & {"yes", "sure"} else SILENT


def _without_repeats(text: str) -> tuple[str, list[int]]:
    """The text with long repeats of one character cut short, and where each character was.

    The answers in it are the same; the time that patterns take grows with the third power of the
    length of a repeat.
    """
    pieces: list[str] = []
    positions: list[int] = []
    done = 0
    for repeat in _REPEATS.finditer(text):
        kept = "\t" if "\t" in repeat.group() else repeat.group()[:4] if repeat[1] else "  "
        pieces += [text[done : repeat.start()], kept]
        positions += range(done, repeat.start())
        positions += range(repeat.start(), repeat.start() + len(kept))
        done = repeat.end()
    return "".join([*pieces, text[done:]]), [*positions, *range(done, len(text) + 1)]


def _asks(match: re.Match[str]) -> bool:
    """Return whether the match is a question mark before a word, which it asks for if a finding."""
    return bool(match.groupdict().get("doubt"))


def _cell_end(text: str, match: re.Match[str]) -> int:
    end = _CELL_ENDS.search(text, match.end())
    return end.start() if end else len(text)


def _complete(text: str, match: re.Match[str]) -> bool:
    """Return whether a match at a line's end is an answer, and not the "no" of a wrapped line."""
    if text[match.end() : match.end() + 1] != "\n":
        return True
    line = text.rfind("\n", 0, match.start()) + 1
    return match.end() - line < _WRAPPED or not text[match.end() + 1 : match.end() + 2].islower()


def _candidates(text: str) -> list[tuple[re.Match[str], str]]:
    found = [
        (m, _state(m.groupdict()))
        for pattern in (JOINED, BARE)
        for m in pattern.finditer(text)
        if _complete(text, m)
    ]
    found += [(m, _chosen(m)) for m in CHOICE.finditer(text)]
    for match in SIDED.finditer(text):
        states = [_state(part.groupdict()) for part in PART_OF_SIDED.finditer(match.group())]
        best = next((s for s in (POSITIVE, UNCERTAIN, NEGATIVE) if s in states), SILENT)
        found.append((match, best))
    found += [(m, UNCERTAIN) for m in ASKED.finditer(text)]
    found += [(m, SILENT) for pattern in (LEFT_OPEN, UNFILLED) for m in pattern.finditer(text)]
    return found


def _chosen(match: re.Match[str]) -> str:
    """The one answer of several that is ticked."""
    pairs = [("m", "w"), ("m2", "w2"), ("n", "v"), ("n2", "v2")]
    ticked = [match[w] for m, w in pairs if (match[m] or "").strip("[() ]-−☐")]
    return _said(ticked[0]) if len(ticked) == 1 else SILENT


def _said(word: str) -> str:
    answer = re.match(ANSWER, word, re.IGNORECASE)
    return _state(answer.groupdict()) if answer else SILENT


def _heading(
    text: str, position: int, stop: int, is_question: bool, names_finding: Names
) -> int | None:
    """The start of the heading that ends at `stop`; None where there is no heading."""
    position = max(position, stop - _WINDOW)
    begin, stop = stop, position + len(text[position:stop].rstrip())
    if "\n" in text[stop:begin]:
        return None  # a line above
    edges = [e for m in _EDGE.finditer(text, position, stop + 1) if (e := m.end()) <= stop]
    if text[stop - 1 : stop] in (")", "]") and edges:  # "pneumothorax (right): no"
        edges = [e for e in edges if text[e - 1] not in "(["]
    start = _begin(text, max([position, *edges]), stop)
    if start is None or not names_finding(start, stop):
        return None
    # "effusion, pneumothorax: none" answers both; "small effusion, pneumothorax: none" the last
    while edges and text[edges[-1] - 1] == ",":
        edges.pop()
        wider = _begin(text, max([position, *edges]), stop)
        if wider is None or not _is_list(text[wider:stop]):
            break
        start = wider
    heading = text[start:stop]
    words = _WORDS.findall(heading)
    if len(words) > _LONGEST or words[-1].lower() in _GOES_ON:
        return None
    return start if is_question or not (_VERB.search(heading) or _DENIED.search(heading)) else None


def _begin(text: str, start: int, stop: int) -> int | None:
    """The first word of text[start:stop] except "and" and "but", or None."""
    skipped = re.match(r"(?:[\W_]+|(?:and|but)\b)*", text[start:stop])
    start += skipped.end() if skipped else 0
    return start if start < stop else None


def _is_list(heading: str) -> bool:
    parts = heading.split(",")
    patterns = (_SIZED, _DENIED, _VERB)
    return all(
        len(_WORDS.findall(p)) <= 3 and not any(one.search(p) for one in patterns) for p in parts
    )


def _ticked(text: str, names_finding: Names) -> tuple[list[Answer], list[Answer]]:
    """Headings with boxes and signs: after the box in lines that begin with one, else before it.

    "[x] Effusion [ ] Fracture", "+ effusion" above "- fracture"; "Effusion [x], fracture [ ]".
    """
    leading: list[Answer] = []
    others: list[Answer] = []
    signed = any(tick[1] == "+" or tick[2] for tick in SIGNED.finditer(text))
    for line in re.finditer(r"[^\n]+", text):
        ticks = list(TICKED.finditer(text, line.start(), line.end()))
        if signed and not ticks:
            ticks = list(SIGNED.finditer(text, line.start(), line.end()))
        leads = bool(ticks) and not text[line.start() : ticks[0].start()].strip(" \t-*•·")
        if not leads:  # words in brackets after a heading are answers of the other kind
            ticks = [tick for tick in ticks if tick.re is TICKED and tick[3] is None]
        before = line.start()
        for tick, following in zip_longest(ticks, ticks[1:]):
            if leads:
                end = following.start() if following else line.end()
                ended = TICK_ENDS.search(text, tick.end(), end)
                begin, end = tick.end(), ended.start() if ended else end
                stop = end
            else:
                begin, stop, end = before, tick.start(), tick.end()
                before = end
            heading = _heading(text, begin, stop, False, names_finding)
            if heading is not None:
                found = leading if leads else others
                found.append(Answer(heading, stop, end, _ticked_state(tick)))
    return leading, others


def _ticked_state(tick: re.Match[str]) -> str:
    *signs, word = (*tick.groups(), None)[:3]
    return _said(word) if word else _TICK_STATES.get(signs[0] or signs[1] or "", SILENT)


def _listed(text: str) -> list[Answer]:
    """Findings after one answer to all of them: "Absent: pneumothorax, effusion."."""
    found = []
    for match in LISTED.finditer(text):
        end = _LIST_ENDS.search(text, match.end())
        stop = end.start() if end else len(text)
        if not _VERB.search(text, match.end(), stop):
            state = UNCERTAIN if match["maybe"] else NEGATIVE
            found.append(Answer(match.end(), stop, stop, state))
    return found
