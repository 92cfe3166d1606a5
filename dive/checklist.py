"""Findings that are answered and not stated: "Pneumothorax: No", "effusion (+)", "[x] Fracture".

A heading is answered by what stands behind a colon, a dash, a question mark, a tab or in brackets,
as far as the answer is all there is before the next mark or the end of the line: in "Pleura: no
effusion" the "no" answers nothing, it denies the effusion. What is answered is read apart from the
text around it, so that no answer reaches into the next line.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import NamedTuple

from dive.lexicon.answers import (
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
)
from dive.lexicon.words import END, Words

POSITIVE, NEGATIVE, UNCERTAIN = "positive", "negative", "uncertain"
SILENT = ""  # the heading was left unanswered


class Answer(NamedTuple):
    """Characters [start, stop) are answered; [stop, end) is what answers them.

    `state` is "positive", "negative", "uncertain", or "" where the form was left empty.
    """

    start: int
    stop: int
    end: int
    state: str


_TICK_STATES = dict.fromkeys("xX✓✔*+☑☒", POSITIVE) | dict.fromkeys("-−✗✘", NEGATIVE)
_EDGE = re.compile(r"[\n;|\t{]|\)(?=,|\s+\w)|[.!?](?=\s)|\s/\s| {2,}|\s[-–—]\s")
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|shows?|demonstrates?|reveals?|there|appears?|remains?|may"
    r"|might|could|can|cannot|suggests?|represents?|seen)\b",
    re.IGNORECASE,
)
_WORDS = re.compile(r"\w+")
_LIST_ENDS = re.compile(r"\n|\.(?=\s|$)|;(?=[^\n;.]*:)")
_LONGEST = 9  # words of a heading
_WINDOW = 200  # characters that are looked through for its beginning
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


def answers(text: str) -> list[Answer]:
    """The answered headings of a text, in its order, none inside another.

    A heading need not name a finding; "Comparison: none" is one as well.
    """
    found: list[Answer] = []
    position = 0
    for match, state in sorted(_candidates(text), key=lambda one: (one[0].start(), -one[0].end())):
        if match.start() < position:
            continue
        start = _heading(text, position, match.start(), asked="?" in match.group())
        if start is not None:
            found.append(Answer(start, match.start(), match.end(), state))
            position = match.end()
    apart: list[Answer] = []
    for one in sorted(found + _ticked(text) + _listed(text)):
        if not apart or one.start >= apart[-1].end:
            apart.append(one)
    return apart


def with_answers(words: Words, found: Iterable[Answer]) -> Iterator[tuple[int, int, Answer | None]]:
    """Sentences as ranges of words, with the answered headings as sentences of their own.

    The words of an answer are in none of them.
    """
    marks = [
        (bisect_left(words.starts, a.start), bisect_left(words.starts, a.stop),
         bisect_left(words.starts, a.end), a)
        for a in found
    ]  # fmt: skip
    k = done = 0
    for first, stop in words.sentences:
        first = max(first, done)
        while k < len(marks) and marks[k][0] < stop:
            begin, end, behind, answer = marks[k]
            for start in (begin, behind):  # a mark before it was the answer's
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
    if groups.get("maybe") or groups.get("doubt"):
        return UNCERTAIN
    if groups.get("no"):
        return NEGATIVE
    return POSITIVE if groups.get("yes") or groups.get("seen") else SILENT


def _alone(text: str, match: re.Match[str]) -> bool:
    """Whether an answer without a mark before it is one: not the "no" at a wrapped line's end."""
    if text[match.end() : match.end() + 1] not in ("\n", "\r"):
        return True
    return match.end() - text.rfind("\n", 0, match.start()) < _WRAPPED


def _candidates(text: str) -> list[tuple[re.Match[str], str]]:
    found = [(m, _state(m.groupdict())) for m in JOINED.finditer(text)]
    found += [(m, _state(m.groupdict())) for m in BARE.finditer(text) if _alone(text, m)]
    for match in CHOICE.finditer(text):
        ticked = [match[w] for m, w in (("m", "w"), ("m2", "w2")) if match[m].strip("[() ]-−☐")]
        state = SILENT
        if len(ticked) == 1:
            answer = re.fullmatch(ANSWER, ticked[0], re.IGNORECASE)
            state = _state(answer.groupdict()) if answer else SILENT
        found.append((match, state))
    for match in SIDED.finditer(text):
        states = [_state(part.groupdict()) for part in PART_OF_SIDED.finditer(match.group())]
        best = next((s for s in (POSITIVE, UNCERTAIN, NEGATIVE) if s in states), SILENT)
        found.append((match, best))
    found += [(m, UNCERTAIN) for m in ASKED.finditer(text)]
    found += [(m, SILENT) for m in LEFT_OPEN.finditer(text)]
    return found


def _heading(text: str, position: int, stop: int, asked: bool) -> int | None:
    """Where the heading that ends at `stop` begins; None where what stands there is no heading."""
    position = max(position, stop - _WINDOW)
    stop = position + len(text[position:stop].rstrip())
    edges = (m.end() for m in _EDGE.finditer(text, position, stop + 1))
    start = max([position, *(e for e in edges if e <= stop)])
    commas = [m.end() for m in re.finditer(r",\s", text[start:stop])]
    # "effusion, pneumothorax: none" answers both; "small effusion, pneumothorax: none" the last
    if commas and not _is_list(text[start:stop]):
        start += commas[-1]
    skipped = re.match(r"(?:[\W_]+|(?:and|but)\b)*", text[start:stop])
    start += skipped.end() if skipped else 0
    heading = text[start:stop]
    words = _WORDS.findall(heading)
    if not words or len(words) > _LONGEST or not re.search(r"[A-Za-z]{2}", heading):
        return None
    if words[-1].lower() in _GOES_ON:
        return None
    if asked:
        return start
    return None if _VERB.search(heading) or _DENIED.search(heading) else start


def _is_list(heading: str) -> bool:
    parts = heading.split(",")
    said = (_SIZED, _DENIED, _VERB)
    return all(
        len(_WORDS.findall(p)) <= 3 and not any(one.search(p) for one in said) for p in parts
    )


def _ticked(text: str) -> list[Answer]:
    """Boxes and signs, and what they tick.

    It stands behind them where the line begins with one ("[x] Effusion [ ] Fracture", "+ effusion"
    above "- fracture"), or else before them ("Effusion [x], fracture [ ]").
    """
    found = []
    signed = any(map(_is_plus, text.split("\n"))) if "+" in text else False
    for line in re.finditer(r"[^\n]+", text):
        marks = list(TICKED.finditer(text, line.start(), line.end()))
        if signed and not marks and (mark := SIGNED.match(text, line.start(), line.end())):
            marks = [mark]
        leads = bool(marks) and not text[line.start() : marks[0].start()].strip(" \t-*•·")
        if not leads:  # words in brackets behind a heading are answers of the other kind
            marks = [mark for mark in marks if mark[3] is None]
        before = line.start()
        for mark, following in zip_longest(marks, marks[1:]):
            if leads:
                end = following.start() if following else line.end()
                ended = TICK_ENDS.search(text, mark.end(), end)
                begin, end = mark.end(), ended.start() if ended else end
                stop = end
            else:
                begin, stop, end = before, mark.start(), mark.end()
                before = end
            heading = _heading(text, begin, stop, asked=False)
            if heading is not None:
                found.append(Answer(heading, stop, end, _ticked_state(mark)))
    return found


def _is_plus(line: str) -> bool:
    mark = SIGNED.match(line)
    return mark is not None and mark[1] == "+"


def _ticked_state(mark: re.Match[str]) -> str:
    *signs, word = (*mark.groups(), None, None)[:3]
    if word is None:
        return _TICK_STATES.get(signs[0] or signs[1] or "", SILENT)
    answer = re.match(ANSWER, word, re.IGNORECASE)
    return _state(answer.groupdict()) if answer else SILENT


def _listed(text: str) -> list[Answer]:
    """Findings behind what answers all of them: "Absent: pneumothorax, effusion."."""
    found = []
    for match in LISTED.finditer(text):
        end = _LIST_ENDS.search(text, match.end())
        stop = end.start() if end else len(text)
        if not _VERB.search(text, match.end(), stop):
            state = UNCERTAIN if match["maybe"] else NEGATIVE
            found.append(Answer(match.end(), stop, stop, state))
    return found
