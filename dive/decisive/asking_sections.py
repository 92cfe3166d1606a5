"""Sections of a report that state nothing about the image: indication, history, comparison.

A heading is recognised by its words, whether it ends with a colon or a dash, is a cell of a table
or stands alone on its line. A section ends at the next heading, at a blank line after its text, and
at a sentence about this image, since in many reports the findings have no heading.
"""

import re
from bisect import bisect_right
from functools import cache
from typing import NamedTuple

from dive.data.sections import section_name
from dive.lexicon.words import word_set

ASKING, COMPARING, FINDINGS, REPORTING, UNKNOWN = (
    "asking",
    "comparing",
    "findings",
    "reporting",
    "?",
)

_ASKS = word_set(
    "indication indications history histories hx pmh pmhx psh hpi information info details question"
    " questions symptom symptoms data diagnosis dx reason reasons request requested referral c/o"
    " h/o r/o cc complaint complaints concern concerns context background scenario presentation"
    " query suspicion purpose problem problems evaluate eval"
)
_ASKS_IF_CLINICAL = word_set("notes note statement summary findings finding impression diagnoses")
_COMPARES = word_set("comparison comparisons compared priors")
_FINDS = word_set("finding findings")
_REPORTS = word_set(
    "impression impressions conclusion conclusions opinion report reports observation observations"
    " interpretation summary description assessment comment comments narrative read addendum result"
    " results answer recommendation recommendations"
)
_FILM = word_set(
    "technique techniques view views procedure examination exam study chest cxr radiograph"
    " radiographs xray portable pa ap frontal film films studies exams examinations"
)
_ANATOMY = word_set(
    "lung lungs heart cardiac mediastinum cardiomediastinum pleura pleural bones bony osseous hila"
    " airways trachea diaphragm diaphragms lines tubes devices"
)
_BESIDE = word_set(  # in headings with one of those
    "clinical patient patient's patients pt past medical surgical family social brief relevant"
    " pertinent present presenting presented provided given supplied stated current chief main"
    " primary final preliminary wet additional other further admission admitting working"
    " provisional referring ordering order requesting physician physician's test imaging radiology"
    " x ray rule out prior previous signs s for this the of and or to with lateral"
)
_FORM = word_set(  # headings of the fields of a form; they neither open nor end a section
    "age sex gender name dob mrn date time meds medication medications allergies smoking smoker"
    " provider physician doctor weight height icd code accession"
)
# recognised even within running text: "cough FINDINGS: clear"
_STRONG = word_set(
    "indication indications history reason comparison findings finding impression conclusion"
    " technique"
)
_SLIPS_OF = ("indication", "history", "comparison", "findings", "impression", "technique")

_SEPARATOR = re.compile(
    r"\.?[ \t]{0,9}[*_]{0,3}[ \t\"']{0,9}[:|\]][ \t]{0,9}\*{0,3}|[ \t]{0,9};?[ \t]{0,9}[*_#]{0,6}"
    r"(?=\n|\Z)|[ \t]{1,9}[-–—]{1,3}\s|\t|(?<=hx)\.(?=\s)|(?<=\bc/o)(?=\s)|;(?=\s)",
    re.IGNORECASE,
)
_BREAK = re.compile(r"[\n\r.;:?!|\t\"{\[]")
_WORD = re.compile(r"\b[chr]/o\b|[a-z]+(?:['’]s)?", re.IGNORECASE)
_LONGEST = 70  # characters of a heading
_MOST_WORDS = 4  # of a heading of unknown words
_NEXT_REPORT = re.compile(r"\n[ \t]*_{10,}[ \t]*(?=\n|$)")
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")

_SENTENCE = re.compile(r"(?<!\bdr)(?<!\bvs)(?<!\bno)[.?!][\"')*]*\s+|\n\s*", re.IGNORECASE)
_NOT_OF_FILM = (
    r"(?!\s+(?:(?:an?|some|clinical|strong|high|known)\s+)*"
    r"(?:clinical|concern|histor|suspi|question|family|request))"
)
_STATES = re.compile(
    # "PA and lateral views of the chest show"; of earlier films reports say "showed"
    r"(?:(?:the|an?|this|single|one|two|three|2|pa|ap|and|frontal|lateral|portable|upright|supine"
    r"|erect|semi-?(?:upright|erect)|bedside|chest|of)[ \t-]+)*"
    r"(?:views?|radiographs?|films?|images?|x-?rays?|cxr|projections?|examination|radiography)\b"
    r"[^.\n]*(?:\n[^.\n]+)?\b(?:shows?|demonstrates?|reveals?|w(?:as|ere)[ \t]+(?:obtained|reviewed"
    r"|submitted|provided|performed|acquired|compared)|(?:is|are)[ \t]+\w+)\b"
    rf"|there[ \t]+(?:is|are|has[ \t]+been|have[ \t]+been)\b{_NOT_OF_FILM}"
    r"|(?:the[ \t]+)?(?:both[ \t]+)?(?:(?:left|right)[ \t]+)?(?:lungs?|heart|cardiac|mediastin\w+"
    r"|cardiomediastinal|trachea|pleura|pleural|bones|bony|osseous|hil(?:a|ar|um)|pulmonary|aorta"
    r"|aortic|hemidiaphragms?|diaphragms?|costophrenic)\b(?:[ \t]+\w+){0,3}?[ \t]+(?:is|are"
    r"|remains?|appears?|shows?|demonstrates?|clear|normal)\b"
    r"|(?:in[ \t]+comparison|(?:as[ \t]+)?compared)[ \t]+(?:to|with)\b[^.]*\b(?:is|are|has|have)\b"
    r"|no[ \t]+(?:acute|focal|pleural|pneumothorax|consolidation)\b"
    r"|[^.\n]{3,80}?\b(?:is|are)[ \t]+(?:now[ \t]+|again[ \t]+|also[ \t]+)?(?:present|seen|noted"
    r"|identified|visuali[sz]ed|demonstrated|unchanged|clear|normal|stable|in[ \t]+place)\b",
    re.IGNORECASE,
)
_NAMES_FILM = re.compile(
    r"(?:[\w'-]+[ \t,]+)?(?:chest|radiographs?|films?|x-?rays?|cxr|cta?|mri?|pet|study|studies"
    r"|exam(?:ination)?s?|priors?|previous|views?|none|multiple|comparison|(?:\S*\d|_{2,}))(?!\w)",
    re.IGNORECASE,
)
_HOLDS_NOW = re.compile(
    r"\b(?:is|are|there|has|have|remains?|appears?|shows?|demonstrates?|reveals?|no)\b", re.I
)


class _Heading(NamedTuple):
    """A heading's characters [start, end), with its separator, and the kind of its section."""

    start: int
    end: int
    kind: str
    bare: bool  # "Hx." or "C/O", which heads a sentence


def asking_sections(text: str) -> list[tuple[int, int]]:
    """Character ranges of sections that state nothing about the image ("Indication: ...")."""
    headings = _headings(text)
    ranges = []
    following = known = None  # the next heading, and the next that is known
    for heading in reversed(headings):
        if heading.kind in (ASKING, COMPARING):
            form = following is not None and not text[heading.end : following.start].strip()
            if form or (known is not None and known.kind == FINDINGS):
                following = known  # "History:\nCOPD: yes\nCHF: no"
            ranges.append((heading.end, _end(text, heading, following)))
        following = heading
        known = known if heading.kind == UNKNOWN else heading
    return ranges[::-1]


def _headings(text: str) -> list[_Heading]:
    """The headings of a text, in its order, without those of a form's fields."""
    found: list[_Heading] = []
    last = 0
    for separator in _SEPARATOR.finditer(text):
        low = max(last, separator.start() - _LONGEST)
        breaks = [one.end() for one in _BREAK.finditer(text, low, separator.start())]
        begin = breaks[-1] if breaks else low
        opens = begin == 0 or bool(breaks) or begin == last
        words = list(_WORD.finditer(text, begin, separator.start()))
        before = text[max(0, begin - _LONGEST) : begin].rpartition("\n")
        line = not before[2].strip(" \t\r\"'{[|0123456789.")
        colon = ":" in separator.group()
        alone = separator.end() == len(text) or text[separator.end()] == "\n"
        if not words:
            continue
        one = _heading(words, opens, line, colon, alone and not separator.group().strip(" \t*_#;"))
        if one is None:
            continue
        short = separator.group() in (".", "")
        if short and not (words[-1].group().lower() in ("hx", "c/o") and opens):
            short = False
        found.append(_Heading(one[0], separator.end(), one[1], short))
        last = separator.end()
    ends = [_Heading(m.start(), m.end(), REPORTING, False) for m in _NEXT_REPORT.finditer(text)]
    return sorted(found + ends)


def _heading(
    words: list[re.Match[str]], opens: bool, line: bool, colon: bool, bare: bool
) -> tuple[int, str] | None:
    """The start of the heading that ends with these words, and its kind; or None.

    `opens`: nothing stands before them in their sentence; `line`: nor in their line; `colon`: a
    colon is behind them; `bare`: nothing but the end of the line is.
    """
    names = [_plain(word.group()) for word in words]
    known = len(names)
    while known and _is_known(names[known - 1]):
        known -= 1
    kind = _kind(tuple(names[known:]))
    if known == 0 and opens and kind is not None:
        capital = words[0].group()[0].isupper()
        if (bare and not (line and capital)) or ("compared" in names and not (line or capital)):
            return None
        return words[0].start(), kind
    if not colon:
        return None
    while known < len(names) and not words[known].group()[0].isupper():
        known += 1
    kind = _kind(tuple(names[known:]))
    strong = any(w.group().lower() in _STRONG and w.group()[0].isupper() for w in words[known:])
    if kind is not None and strong:
        return words[known].start(), kind
    if not opens or names[0] in _FORM or names[-1] in _FORM:
        return None
    if names[0] in _FILM | _ANATOMY:
        return words[0].start(), REPORTING  # "Chest, two upright views:"
    if line and all(word.group().isupper() for word in words):
        return (words[0].start(), UNKNOWN) if len(names[0]) > 1 else None
    if line and len(names) <= _MOST_WORDS and words[0].group()[0].isupper():
        return words[0].start(), UNKNOWN
    return None


def _plain(word: str) -> str:
    return word.lower().replace("’", "'")


@cache
def _slip(word: str) -> str | None:
    """The heading that a word misspells: "ndication"."""
    name = section_name(word) if len(word) > 6 else ""
    return name if name in _SLIPS_OF else None


def _is_known(word: str) -> bool:
    known = _ASKS | _ASKS_IF_CLINICAL | _COMPARES | _FINDS | _REPORTS | _FILM | _BESIDE
    return word in known or _slip(word) is not None


def _kind(names: tuple[str, ...]) -> str | None:
    """The kind of section of a heading of known words, or None."""
    words = {_slip(name) or name if not _is_listed(name) else name for name in names}
    if "clinical" in words and words & _ASKS_IF_CLINICAL:
        return ASKING
    if words & _FINDS:
        return FINDINGS
    if words & _REPORTS:
        return REPORTING
    earlier = words & {"prior", "previous"} and words & _FILM and words.isdisjoint(_ASKS)
    if words & _COMPARES or earlier:
        return COMPARING
    if words & _ASKS or {"rule", "out"} <= words:
        return ASKING
    return REPORTING if words & _FILM else None


def _is_listed(name: str) -> bool:
    return name in _ASKS | _COMPARES | _FINDS | _REPORTS | _FILM | _BESIDE | _ASKS_IF_CLINICAL


def _end(text: str, heading: _Heading, following: _Heading | None) -> int:
    """The end of a heading's section, at the latest before the following heading."""
    limit = len(text) if following is None else following.start
    first = heading.end
    while first < limit and text[first].isspace():
        first += 1
    starts = _sentences(text, first, limit)
    if heading.bare:
        return starts[1] if len(starts) > 1 else limit
    if heading.kind == COMPARING:
        away = _PARAGRAPH.search(text, heading.end - 1, first + 1) is not None
        for n, start in enumerate(starts):
            stop = starts[n + 1] if n + 1 < len(starts) else limit
            named = _NAMES_FILM.match(text, start) and not _HOLDS_NOW.search(text, start, stop)
            if not named and (n or away):
                return start
        return limit
    states = next((start for start in starts if _STATES.match(text, start, limit)), limit)
    if following is not None and following.kind == FINDINGS:
        return states  # the findings follow below
    blank = _PARAGRAPH.search(text, first, limit)
    return min(states, limit if blank is None else blank.start())


def _sentences(text: str, first: int, limit: int) -> list[int]:
    """Possible starts of sentences in text[first:limit]; a line in small letters continues one."""
    starts = [first]
    for separator in _SENTENCE.finditer(text, first, limit):
        end = separator.end()
        if end >= limit:
            break
        if (
            separator.group()[0] == "\n"
            and "\n" not in separator.group()[1:]
            and not text[end].isupper()
        ):
            continue
        starts.insert(bisect_right(starts, end), end)
    return starts
