"""Normalisations from a report to words; they change BLEU and ROUGE most, so every score names its
own.

- `raw`: the text as it is, split at white space. "Effusion." and "effusion" are different words.
- `lower` (default): lower-cased; punctuation marks are words of their own.
- `r2gen`: the cleaning of MIMIC-CXR in R2Gen and later works: enumeration and most punctuation are
  removed, sentences end in a lone ".". Hyphens stay.

An empty report has no words under any of them (the original cleaning would leave it a ".").
"""

import re
from collections.abc import Callable

from dive.errors import DiveError

_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")

# R2Gen removes these characters from each sentence. The range from ":" to "[" in the published
# pattern takes in ";<=>?@" and "A-Z" (gone already, the text is lower-case), and leaves "-".
_R2GEN_DROPPED = re.compile(r"[.,?*!%^&_+():;<=>@\[\]{}\"/\\']")
# List numbers in the order of their removal, which changes the outcome.
_R2GEN_NUMBERS = [("1. ", "")]
_R2GEN_NUMBERS += [(f". {n}. ", ". ") for n in (2, 3, 4, 5)]
_R2GEN_NUMBERS += [(f" {n}. ", ". ") for n in (2, 3, 4, 5)]


def _raw(text: str) -> list[str]:
    return text.split()


def _lower(text: str) -> list[str]:
    return _WORD_OR_MARK.findall(text.lower())


def r2gen_clean(text: str) -> str:
    """The report as the R2Gen line of work scores it; "" for an empty report."""
    if not text.strip():
        return ""
    text = text.replace("\n", " ")
    for character in "_", " ", ".":
        text = re.sub(re.escape(character) + "{2,}", character, text)
    for number, instead in _R2GEN_NUMBERS:
        text = text.replace(number, instead)
    sentences = text.strip().lower().split(". ")
    # as in the original, a sentence without words left still has its full stop
    cleaned = [_R2GEN_DROPPED.sub("", sentence.strip()) for sentence in sentences]
    return " . ".join(cleaned) + " ."


def _r2gen(text: str) -> list[str]:
    return r2gen_clean(text).split()


NORMALIZATIONS: dict[str, Callable[[str], list[str]]] = {
    "raw": _raw,
    "lower": _lower,
    "r2gen": _r2gen,
}


def words(text: str, normalization: str = "lower") -> list[str]:
    """The words of `text`.

    Raises:
        DiveError: a normalisation that does not exist.
    """
    if normalization not in NORMALIZATIONS:
        raise DiveError(
            f"normalization is {normalization!r}, want one of {', '.join(NORMALIZATIONS)}"
        )
    return NORMALIZATIONS[normalization](text)
