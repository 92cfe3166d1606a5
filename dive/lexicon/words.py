"""Reports cut into words and sentences, with the position of every word.

Radiology reports end sentences in many ways: full stops with no space after them, list numbers,
line breaks, section headings. They also hold full stops that end nothing ("5.2 cm", "Dr.", "vs.").
"""

import re
from dataclasses import dataclass
from functools import lru_cache

# kinds of text between a word and the one before it
JOINED, COMMA, COLON, SEMICOLON, END, QUERY = range(6)
# COLON also stands for a dash between spaces.
# QUERY is a question mark in front of a word ("?pneumonia").


def word_set(words: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(words.split())


_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|_+")
# abbreviations whose full stop is not the end of a sentence
_ABBREVIATIONS = word_set(
    "dr drs mr mrs ms prof st vs e g i eg ie approx resp cf etc incl ca fig pt hx"
)
# abbreviations before a small letter only: "no sig. effusion", and not "PTX: neg. Effusion: small"
_CLIPPED = word_set(
    "rt lt bilat sig evid neg pos poss prob mod sm lg sl min max def susp abn norm incr decr inc"
    " ant post lat med sup inf bibas w assoc indet cw subseg"
)
_LIST_MARK = re.compile(r"\s*(?:\(?\d{1,2}[.):]|[-*•·–>]|[a-z][.)])\s", re.IGNORECASE)
_FUNCTION_WORDS = word_set(
    "a an the of or and no nor not with without for in on at to by from as is are was were has have"
    " be been may might could can than that which this these new any small mild moderate left right"
    " versus vs likely possible probable probably possibly questionable suspected"
)
_WRAPPED = 50  # characters; a longer line may have been wrapped
_NARROW = 40  # characters; a text whose lines are all shorter is a list, and was not wrapped
_SIMPLE = {
    " ": JOINED,
    "-": JOINED,
    "/": JOINED,
    ", ": COMMA,
    ". ": END,
    ": ": COLON,
    "; ": SEMICOLON,
}


@dataclass(slots=True)
class Words:
    """A text as words in lower case.

    Word i is text[starts[i]:ends[i]]; `before[i]` is the kind of text
    before it; `sentences` are ranges of words; `joined[i]`: a term may continue from the word
    before to word i."""

    words: list[str]
    starts: list[int]
    ends: list[int]
    before: list[int]
    joined: list[bool]
    sentences: list[tuple[int, int]]


def split(text: str) -> Words:
    """Cut a text into words and sentences."""
    words: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    sentences: list[tuple[int, int]] = []
    opened = last = 0
    for match in _WORD.finditer(text):
        start, end = match.span()
        between = text[last:start]
        kind = _SIMPLE.get(between)
        if kind is None or kind == END:
            kind = _between(text, last, start, words[-1] if words else "") if words else END
            if not words and between.rstrip(" ([").endswith("?"):
                kind = QUERY
        if words and words[-1] == "no" and between.startswith(".") and kind == JOINED:
            words[-1] = "number"  # No. 3
        if kind == END and words and len(words) > opened:
            sentences.append((opened, len(words)))
            opened = len(words)
            punctuation = between.rstrip(" ([")
            if punctuation.endswith("?") and punctuation[:-1].strip(" ?"):
                kind = QUERY  # "... normal. ? pneumonia": a new sentence that asks
        words.append(match.group().lower().replace("’", "'"))
        starts.append(start)
        ends.append(end)
        before.append(kind)
        last = end
    if opened < len(words):
        sentences.append((opened, len(words)))
    joined = [kind == JOINED for kind in before]
    for first, stop in sentences:
        # a heading joins the words after it: "Heart: mildly enlarged"
        for i in range(first + 1, min(first + 4, stop)):
            joined[i] = joined[i] or before[i] == COLON
    return Words(words, starts, ends, before, joined, sentences)


def _between(text: str, last: int, start: int, word: str) -> int:
    """The kind of text[last:start], between two words."""
    between = text[last:start]
    if "\n" in between or "\r" in between:
        return _line_break(text, last, start, between, word)
    return _punctuation(text, last, start, between, word)


def _punctuation(text: str, last: int, start: int, between: str, word: str) -> int:
    stripped = between.strip()
    if not stripped:
        return JOINED
    if stripped in ("+/-", "±", "+-", "-/+"):
        return QUERY  # "opacity +/- effusion"
    if "?" in stripped:
        # "? effusion" asks; "effusion? No." ends
        asks = between[0] not in "?" and stripped[-1] == "?" and "." not in stripped
        return QUERY if asks else END
    if "!" in stripped:
        return END
    if "." in stripped:
        return _full_stop(text, last, start, between, word)
    if ";" in stripped:
        return SEMICOLON
    if ":" in stripped:
        return COLON
    if "," in stripped:
        return COMMA
    if stripped == "+" and between != "+":
        return COMMA
    if stripped in ("-", "/", "'", '"', "&", "+", "’", "%", "#", "=", "~", "<", ">", "*", "‑", "‐"):
        spaced = stripped == "-" and between != "-" and between[0] == " " and between[-1] == " "
        return COLON if spaced else JOINED
    if stripped[0] in "-–—" or stripped[-1] in "-–—":
        return JOINED if between in ("–", "‑") else COLON
    return COMMA  # brackets and all others


def _full_stop(text: str, last: int, start: int, between: str, word: str) -> int:
    """The kind of a text between two words with a full stop, alone or with other punctuation."""
    if between == ".":
        # 5.2 and T5.6; "effusion.No" ends a sentence, "p.m" and "a.p" do not
        number = text[last - 1].isdigit() and text[start].isdigit()
        return JOINED if number or len(word) == 1 or word in _ABBREVIATIONS else END
    if between.strip() == ".":
        if word in _ABBREVIATIONS or (word in _CLIPPED and text[start].islower()):
            return JOINED
        if word == "no" and text[start].isdigit():
            return JOINED  # No. 3
    return END


def _line_break(text: str, last: int, start: int, between: str, word: str) -> int:
    """The kind of a line break: a wrapped line goes on, a blank line, a list item or a short line
    ends a sentence."""
    here = between.replace("\r\n", "\n").replace("\r", "\n")
    indent = here.rsplit("\n", 1)[-1]
    if here.count("\n") > 1 or indent.strip(" \t([\"'"):
        return END
    rest = here.split("\n", 1)[0].strip()
    if rest:
        kind = _punctuation(text, last, start, rest + " ", word)
        if kind == COMMA or (kind == JOINED and rest in "-/"):
            return kind
        return kind if kind in (COLON, SEMICOLON, END) else JOINED
    if _LIST_MARK.match(text, start) and text[start].isdigit():
        return END
    begin = max(text.rfind("\n", 0, last), text.rfind("\r", 0, last)) + 1
    if word in _FUNCTION_WORDS:
        return JOINED
    if text[start].isupper():
        # "Mild cardiomegaly" begins a line of its own, "RLL" and "XXXX" may go on with one
        begins = text[start + 1 : start + 2].islower()
        return END if begins or last - begin < _WRAPPED else JOINED
    return JOINED if _may_be_wrapped(text, begin, last, start) else END


@lru_cache(maxsize=1)
def _width(text: str) -> int:
    return max(map(len, text.split("\n")))


def _may_be_wrapped(text: str, begin: int, last: int, start: int) -> bool:
    """Return whether the line text[begin:last] ends where the word at `start` no longer fitted."""
    width = _width(text)
    word = _WORD.match(text, start)
    return width >= _NARROW and last - begin + 1 + (len(word.group()) if word else 0) > width - 4
