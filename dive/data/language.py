"""Whether reports are English, the only language of the lexicon.

A sentence is English by words that only English has: its function words, and the vocabulary of
terse reports ("Lungs clear."). It is of another language by the function words of that language, by
letters that English does not have, or where none of two or more words is known. Words of several
languages ("Pneumothorax: normal") decide nothing. No language is named: the lists only separate
English from the others.
"""

import logging
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import NamedTuple

import yaml

from dive.data.text_edits import sentences

log = logging.getLogger(__name__)

SHARE = 0.2  # of the reports: a warning above it
SAMPLE = 2000  # reports that are examined at most, evenly spaced

_WORDS = {
    kind: frozenset(str(words).split())
    for kind, words in yaml.safe_load(
        resources.files("dive.data").joinpath("language.yaml").read_text(encoding="utf-8")
    ).items()
}
_ENGLISH = _WORDS["english"] | _WORDS["shorthand"]
_SUFFIX = re.compile(r"[a-z]{2,}(?:ing|ings|ly|ness|ity|ities|ized|ised)|[a-z]{4,}ed")
_NO_SUFFIX = {"gering", "ring", "bring", "pared", "hundred"}
_TOKEN = re.compile(r"[^\W\d_]+")


class Language(NamedTuple):
    """Counts of reports mostly in English and mostly not, and a sentence of the latter."""

    english: int
    other: int
    example: str

    @property
    def doubtful(self) -> bool:
        """Whether more than `SHARE` of the classified reports are not English."""
        return self.other > SHARE * (self.english + self.other)


def warn_if_not_english(
    reports: Sequence[str], what: str, reader: str, stacklevel: int = 3
) -> None:
    """Warn once where many reports are not English, which `reader` cannot read.

    what: name of the reports in the warning ("predictions").
    """
    found = language_of(reports)
    if found.doubtful:
        warnings.warn(
            f"{found.other} of {found.english + found.other} {what} hold mostly sentences without "
            f"an English word: {reader} reads English, and finds next to nothing in other "
            "languages",
            stacklevel=stacklevel,
        )
        log.info("without an English word: %r", found.example)


def language_of(reports: Sequence[str]) -> Language:
    """How many of the reports (of a sample, where there are many) are English."""
    english = other = 0
    example = ""
    for report in reports[:: max(1, -(-len(reports) // SAMPLE))]:
        votes = [(vote, one) for one in _parts(report) if (vote := is_english(one)) is not None]
        against = [one for vote, one in votes if not vote]
        if not votes:
            continue
        if 2 * len(against) > len(votes):
            other += 1
            example = example or against[0][:60]
        else:
            english += 1
    return Language(english, other, example)


def _parts(report: str) -> Iterable[str]:
    for one in sentences(report):
        yield from filter(str.strip, re.split(r"[。！？;；]", one))


def is_english(sentence: str) -> bool | None:
    """Whether a sentence is English; None where its words do not decide it."""
    words = _TOKEN.findall(unicodedata.normalize("NFC", sentence))
    letters = "".join(words)
    if not letters:
        return None
    if 2 * sum(_is_latin(letter) for letter in letters) < len(letters):
        return False
    capitals = letters.isupper()
    ours = theirs = unknown = 0
    for word in words:
        lower = word.casefold()
        if not lower.isascii():
            theirs += 1
        elif word.isupper() and not capitals and lower in _WORDS["abbreviations"]:
            continue  # LA is an atrium, and PA a view
        elif lower in _WORDS["foreign"] and not (capitals and len(lower) < 3):
            theirs += 1
        elif lower in _WORDS["shared"] or len(lower) < 2:
            continue
        elif lower in _ENGLISH or (_SUFFIX.fullmatch(lower) and lower not in _NO_SUFFIX):
            ours += 1
        elif not (word.isupper() and not capitals):  # an abbreviation decides nothing
            unknown += 1
    if ours > theirs:
        return True
    if theirs or unknown > 1:
        return False
    return None


def _is_latin(letter: str) -> bool:
    return letter < "\u0250" or "\u1e00" <= letter < "\u1f00"
