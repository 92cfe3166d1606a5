"""Changes to the text of a report that a reader makes on request."""

import re

# ___ in MIMIC-CXR, XXXX in Open-i: de-identified names and dates
_PLACEHOLDER = re.compile(r"_{2,}|\bX{3,}(?=\b|_)")
_ORPHANS = re.compile(r"\s+(?=[.,;:!?)])")

# Without the dots that end no sentence: abbreviations, initials and the numbers of a list.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bDr\.)(?<!\bMr\.)(?<!\bvs\.)(?<!\b[a-z]\.)(?<!\d\.)\s+")

_STUDY = (
    r"(?:study|studies|exam(?:ination)?s?|radiographs?|films?|x-?rays?|cxrs?|images?|imaging|"
    r"ct|mri|scans?|chest|pa|ap|portable|frontal|lateral|dated?|views?|comparisons?)"
)
_COMPARISON = re.compile(
    "|".join(
        (
            r"\bcompar(?:ed?|ing|ison|isons|able|ative(?:ly)?)\b",
            r"\bunchanged\b|\bno (?:significant |substantial |appreciable |relevant |interval |"
            r"major |other )*changes?\b|\bwithout (?:significant |interval )*changes?\b",
            r"\binterval(?:ly)?\b(?!s? of)",
            r"\bstable\b|\bstability\b",
            r"\b(?:prior|previous|earlier|preceding|recent|last|old|outside) "
            rf"(?:\w+ ){{0,2}}{_STUDY}\b",
            r"\b(?:from|than|to|on|since|with) (?:the |a |an |her |his )?"
            r"(?:most recent |immediate )?(?:priors?|previous|before|earlier)\b",
            r"\bpreviously\b|\bas before\b|\bsince\b|\bagain\b|\bre-?demonstrat\w*",
            r"\bno longer\b|\bnew(?:ly)?\b",
            r"\bhas been (?:removed|placed|withdrawn|advanced|retracted)\b",
            r"\b(?:improv|worsen|progress|regress|resol[vu]|persist)\w*",
            r"\b(?:has|have|had) (?:\w+ ){0,2}(?:increased|decreased|cleared|developed|enlarged|"
            r"grown|changed|appeared|moved|migrated)\b",
            r"\b(?:increased|decreased|larger|smaller|more|less) (?:\w+ ){0,6}?(?:than|since)\b",
            r"\bremains?\b|\bremained\b|\bcontinu(?:es?|ed|ing)\b",
        )
    ),
    re.IGNORECASE,
)


def one_line(text: str) -> str:
    """Replaces line breaks, which depend on a printer's width, by spaces."""
    return " ".join(text.split())


def strip_placeholders(text: str) -> str:
    """Removes `___` and `XXXX`, and spaces before the punctuation behind them."""
    return one_line(_ORPHANS.sub("", _PLACEHOLDER.sub("", text)))


def sentences(text: str) -> list[str]:
    """Splits a text into sentences with their end marks; line breaks count as spaces."""
    return [one for one in _SENTENCE_END.split(one_line(text)) if one]


def compares(sentence: str) -> bool:
    """Whether a sentence mentions an earlier examination or a change since one.

    Decided by a list of expressions: comparison, unchanged, interval, stable, a prior study,
    previously, since, again, new, improved or worsened, has increased, remains. In doubt the answer
    is yes, because a model should not learn what a single film cannot show. History other than an
    examination ("prior sternotomy") does not count.
    """
    return _COMPARISON.search(sentence) is not None


def drop_comparisons(text: str) -> str:
    """The text without the sentences that compare; "" if there are no others."""
    return " ".join(one for one in sentences(text) if not compares(one))
