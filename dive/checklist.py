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


_SEEN = (
    r"(?:seen|present|identified|evident|detected|visuali[sz]ed|demonstrated|noted|found|visible"
    r"|appreciated|apparent|observed|recogni[sz]ed|shown|discernible)"
)
_SIZE = (
    r"(?:tiny|trace|minimal(?:ly)?|mild(?:ly)?|small|moderate(?:ly)?|large|massive|severe(?:ly)?"
    r"|slight(?:ly)?|minor|marked|extensive|right|left|rt|lt|bilateral(?:ly)?|bibasal|bibasilar"
    r"|unchanged|stable|increas(?:ed|ing)|decreas(?:ed|ing)|improv(?:ed|ing)|worse(?:ned|ning)?)"
)
_SURE = r"(?: (?:definite|obvious|significant|convincing|acute|overt|visible|large|focal))?"
_NO = (
    rf"(?:no|none|nil)(?: longer| more)?{_SURE}(?: {_SEEN})?|n|neg(?:ative|\.)?|absent|abs"
    rf"|not (?:{_SEEN}|there|suspected)|no evidence(?: of (?:same|this|it|any))?|nope|nothing"
    r"|false|excluded|ruled out|resolved|cleared|gone|removed|-ve|[-–—−]+|0|✗|✘|☐"
)
_YES = r"yes|y|1(?![\d.]|[ \t]*[cm]m)|pos(?:itive|\.)?|\+ve|\++|true|✓|✔|☑|☒"
_MAYBE = (
    r"possib(?:le|ly)|probabl[ey]|likely|unlikely|maybe|perhaps|equivocal|indeterminate|uncertain"
    r"|unclear|questionabl[ey]|suspicious|suspected|doubtful|borderline|query|tbc|inconclusive"
    r"|\?+|\+/-|±|(?:may|might|could) be(?: present)?|not sure|\?\s?(?:yes|no|y|n)"
    r"|(?:cannot|can not|can't|could not|unable to|difficult to|not|hard to)(?: be)?"
    r"(?: (?:entirely|completely|fully|definitely|reliably))? (?:excluded?|rule out|ruled out)"
)
_EMPTY = (
    r"n/?a|not (?:assessed|evaluated|applicable|available|commented(?: on)?|done|examined|stated"
    r"|mentioned|reported|recorded|addressed)|null|nan|unknown|blank|see (?:above|below|report|comments?|text)|_{2,}|\*{2,}|x{3,}"
)
_TAIL = (
    r"(?: (?:at (?:this time|present)|today|currently|now|on (?:this|the current|today's)"
    r" \w+|bilaterally|on either side|either side|b/l|of (?:note|significance)))?"
)
_END = (
    r"(?=\s*(?:$|[\n\t,;|()\[\]}!]|\.(?!\d)| / | {2,}|\s[-–—] |[-–—]\n| but\b| and\b"
    r"|\s(?:and )?[^\n,;.:?=|()]{2,40}[:?=](?!\d)))"
)
_OPEN = r"[\"']?(?:\*\*)?(?:[\[({][ \t]*)?"
_SHUT = r"(?:[ \t]*[\])}])?(?:\*\*)?[\"']?"
_ANSWER = (
    rf"(?:(?:(?P<maybe>{_MAYBE})(?: {_SIZE}){{0,3}}|(?P<empty>{_EMPTY})|(?P<no>(?:{_NO}){_TAIL})"
    rf"|(?P<seen>{_SEEN}|in situ|in place|{_SIZE}(?: {_SIZE}){{0,3}})){_SHUT}{_END}"
    r"|(?P<doubt>\?(?=[ \t]?[a-z]))"
    rf"|(?P<yes>{_YES})(?![a-z]){_SHUT})(?![ \t)\]]*[:=])"
)
_FORM = r"[ \t]*[\[(]?\b(?:yes|y)[ \t]?(?:/|or)[ \t]?(?:no|n)\b[\])]?"  # "Effusion (Y/N): N"
_JOIN = (
    r"(?:[\"']?[ \t]*(?:[:=]|-+>|=+>|→|⇒|\.{3,}|…+|_{2,}|\|)(?:[ \t:=|]*|[ \t]*\n[ \t]*)"
    r"|(?<=\w)(?:\?+[ \t]*|[ \t]\?+[ \t]+)(?:\n[ \t]*)?(?:a(?:ns(?:wer)?)?[:.][ \t]*)?"
    rf"|[,;](?=(?:{_NO}|{_YES}|{_MAYBE})[ \t\r]*(?:\n|$))"
    r"|[ \t]+[-–—−]+[ \t]*|[-–—−]+[ \t]+|[-–—](?=(?:no|yes|neg|pos|nil|none|absent|present)\b)"
    r"|\t[ \t]*|[ \t]{2,})"
)
_JOINED = re.compile(
    rf"(?:{_FORM}[ \t:=|]*|{_JOIN}|[ \t]*(?=[\[({{])){_OPEN}{_ANSWER}", re.IGNORECASE
)
_BARE = re.compile(
    rf"[ \t](?P<doubt>\?)(?={_SIZE}\b)"
    r"|[ \t](?:(?P<no>no|none|nil(?: significant)?|neg|negative|absent|abs|n|-|-ve|no evidence|no definite|0)"
    rf"|(?P<yes>yes|y|present|pos|positive|\+|\+ve)|(?P<maybe>\?+|\+/-|±|uncertain|equivocal|unclear|doubtful)){_END}",
    re.IGNORECASE,
)
_ASKED = re.compile(
    rf"(?<=\w)[ \t]?\?+(?=[ \t]*(?:$|[\n;,)\]]|[ \t]))(?!\s*{_SIZE}\b)", re.IGNORECASE
)
# a form's empty field: nothing comes behind it, or the next heading does
_LEFT_OPEN = re.compile(r"[ \t]*:[ \t]*(?=$|\n[ \t]*(?:$|\n|[^\n:]{2,60}:))")

_BOX = r"[\[(]\s?(?P<{0}>[xX✓✔*+−-]?)\s?[\])]"
_CHOICE = re.compile(
    rf"[ \t]*[:=?|]?[ \t]*(?P<a>{_BOX.format('m')}[ \t]*(?P<w>yes|no|y|n|present|absent"
    r"|possible|pos|neg|positive|negative)\b)"
    rf"[ \t,/|]*{_BOX.format('m2')}[ \t]*(?P<w2>yes|no|y|n|present|absent|possible|pos|neg"
    r"|positive|negative)\b",
    re.IGNORECASE,
)
_SIDE = r"(?:on the )?(?:right|left|rt|lt|r|l|bilateral(?:ly)?)(?: side)?"
_SIDED = re.compile(
    rf"[ \t]*[:=-][ \t]*(?:{_SIDE}[ \t]*[:=–-]?[ \t]*[\[(]?(?:{_NO}|{_YES}|{_MAYBE})[\])]?"
    rf"[ \t,;/]*(?:and )?){{2}}{_END}",
    re.IGNORECASE,
)
_PART = re.compile(
    rf"{_SIDE}[ \t]*[:=–-]?[ \t]*[\[(]?(?:(?P<maybe>{_MAYBE})|(?P<no>{_NO})|(?P<yes>{_YES}))"
    r"(?![A-Za-z])",
    re.IGNORECASE,
)
_TICKED = re.compile(
    rf"[\[(]\s?([xX✓✔*+−-]|)\s?[\])]|[☐☑☒✓✔✗✘]|[\[(]\s?(?:{_NO}|{_YES}|{_MAYBE})\s?[\])]",
    re.IGNORECASE,
)
_TICK_ENDS = re.compile(r"[;|\t,]|[.](?=\s|$)| {3,}")
_TICK_STATES = dict.fromkeys("xX✓✔*+☑☒", POSITIVE) | dict.fromkeys("-−✗✘", NEGATIVE)
_LISTED = re.compile(
    r"(?:^|(?<=[\n.;]))[ \t]*(?:(?P<no>(?:pertinent )?negatives?(?: findings?)?(?: for)?|absent|no"
    rf"|not (?:{_SEEN})|none of(?: the following)?|no evidence of(?: the following)?|excluded"
    r"|ruled out|without|denies)"
    r"|(?P<maybe>possible|probable|equivocal|questionable|uncertain|suspected|likely))(?:[ \t]*(?::|=|-+>|→)|[ \t]+[-–—])[ \t]*"
    r"(?=\w)",
    re.IGNORECASE,
)
_ANY = re.compile(rf"\b(?:{_NO}|{_YES}|{_MAYBE}|{_EMPTY})\b|[?+✓✔☑☒☐✗✘±:]|\(-|\[|[-–—−]\s|\t", re.I)

_EDGE = re.compile(r"[\n;|\t{]|\)(?=,|\s+\w)|[.!?](?=\s)|\s/\s| {2,}|\s[-–—]\s")
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|shows?|demonstrates?|reveals?|there|appears?|remains?|may"
    r"|might|could|can|cannot|suggests?|represents?|seen)\b",
    re.IGNORECASE,
)
_WORDS = re.compile(r"\w+")
_LONGEST = 9  # words of a heading
_WRAPPED = 50  # characters; a longer line may have been wrapped
_DENIED = re.compile(r"\b(?:no|not|without|nor|neither|denies)\b", re.IGNORECASE)
_SIZED = re.compile(
    r"\b(?:mild|moderate|severe|small|large|tiny|trace|stable|unchanged|left|right|bilateral|new"
    r"|old|with|without|no)\b",
    re.IGNORECASE,
)


def answers(text: str) -> list[Answer]:
    """The answered headings of a text, in its order, none inside another.

    A heading need not name a finding; "Comparison: none" is one as well.
    """
    if not _ANY.search(text):
        return []
    found: list[Answer] = []
    position = 0
    for match, state in sorted(_candidates(text), key=lambda one: (one[0].start(), -one[0].end())):
        if match.start() < position:
            continue
        stop = match.start()
        start = _heading(text, position, stop, asked="?" in match.group())
        if start is None:
            continue
        found.append(Answer(start, stop, match.end(), state))
        position = match.end()
    taken = found + _ticked(text) + _listed(text)
    taken.sort()
    return [one for k, one in enumerate(taken) if not any(one.start < b.end for b in taken[:k])]


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
    found = [(m, _state(m.groupdict())) for m in _JOINED.finditer(text)]
    found += [(m, _state(m.groupdict())) for m in _BARE.finditer(text) if _alone(text, m)]
    for match in _CHOICE.finditer(text):
        ticked = [match[w] for m, w in (("m", "w"), ("m2", "w2")) if match[m].strip(" -−")]
        state = SILENT
        if len(ticked) == 1:
            answer = re.fullmatch(_ANSWER, ticked[0], re.IGNORECASE)
            state = _state(answer.groupdict()) if answer else SILENT
        found.append((match, state))
    for match in _SIDED.finditer(text):
        states = [_state(part.groupdict()) for part in _PART.finditer(match.group())]
        best = next((s for s in (POSITIVE, UNCERTAIN, NEGATIVE) if s in states), SILENT)
        found.append((match, best))
    found += [(m, UNCERTAIN) for m in _ASKED.finditer(text)]
    found += [(m, SILENT) for m in _LEFT_OPEN.finditer(text)]
    return found


def _heading(text: str, position: int, stop: int, asked: bool) -> int | None:
    """Where the heading that ends at `stop` begins; None where what stands there is no heading."""
    stop = len(text[:stop].rstrip())
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
    """Boxes before what they tick, where the line begins with one ("[x] Effusion [ ] Fracture"),
    or else behind it ("Effusion [x], fracture [ ]")."""
    found = []
    for line in re.finditer(r"[^\n]+", text):
        marks = list(_TICKED.finditer(text, line.start(), line.end()))
        leads = bool(marks) and not text[line.start() : marks[0].start()].strip(" \t-*•·")
        if not leads:  # words in brackets behind a heading are found elsewhere
            marks = [mark for mark in marks if mark[1] is not None or len(mark[0]) == 1]
        before = line.start()
        for mark, following in zip_longest(marks, marks[1:]):
            if leads:
                stop = following.start() if following else line.end()
                ended = _TICK_ENDS.search(text, mark.end(), stop)
                begin, stop = mark.end(), ended.start() if ended else stop
                end = stop
            else:
                begin, stop, end = before, mark.start(), mark.end()
                before = end
            heading = _heading(text, begin, stop, asked=False)
            if heading is not None:
                found.append(Answer(heading, stop, end, _ticked_state(mark)))
    return found


def _ticked_state(mark: re.Match[str]) -> str:
    sign = mark[0] if mark[1] is None else mark[1]
    if sign in _TICK_STATES or len(sign) < 2:
        return _TICK_STATES.get(sign, SILENT)
    answer = re.match(_ANSWER, sign[1:], re.IGNORECASE)
    return _state(answer.groupdict()) if answer else SILENT


def _listed(text: str) -> list[Answer]:
    """Findings behind what answers all of them: "Absent: pneumothorax, effusion."."""
    found = []
    for match in _LISTED.finditer(text):
        end = re.compile(r"\n|\.(?=\s|$)|;(?=[^\n]*:)").search(text, match.end())
        stop = end.start() if end else len(text)
        if not _VERB.search(text, match.end(), stop):
            state = UNCERTAIN if match["maybe"] else NEGATIVE
            found.append(Answer(match.end(), stop, stop, state))
    return found
