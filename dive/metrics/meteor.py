"""METEOR as nltk computes it: exact words, stems, and with WordNet's data also synonyms.

nltk looks synonyms up by a word's stem ("larg"), so it misses many that it should find. It is not
the number of the Java program (METEOR 1.5) in papers of the R2Gen line, which has tuned weights and
paraphrase tables.
"""

from collections.abc import Sequence
from typing import Any

from dive.errors import DiveError
from dive.metrics.measure import Measure, mean_measure


def meteor_measure(
    predictions: Sequence[list[str]],
    references: Sequence[list[str]],
    *,
    synonyms: bool,
    normalization: str,
) -> Measure:
    """The measure `meteor`: the mean over reports; 0 for an empty prediction."""
    try:
        import nltk
        from nltk.stem.porter import PorterStemmer
        from nltk.translate.meteor_score import single_meteor_score
    except ImportError as error:
        raise DiveError(f"METEOR needs nltk: pip install nltk ({error})") from error
    wordnet = _wordnet() if synonyms else _NoSynonyms()
    stemmer = PorterStemmer()
    values = [
        single_meteor_score(theirs, mine, preprocess=_keep, stemmer=stemmer, wordnet=wordnet)
        if mine and theirs
        else 0.0
        for mine, theirs in zip(predictions, references, strict=True)
    ]
    matched = "words, stems and WordNet synonyms" if synonyms else "words and stems, no synonyms"
    variant = (
        f"METEOR of nltk {nltk.__version__} ({matched}), mean over reports, {normalization} words"
    )
    return mean_measure("meteor", values, variant)


def _keep(word: str) -> str:
    return word  # the normalisation decides about case


class _NoSynonyms:
    """A replacement of WordNet where only words and stems match."""

    def synsets(self, word: str) -> list[Any]:
        return []


def wordnet_present() -> bool:
    """Return whether nltk and WordNet's data are both there."""
    try:
        _wordnet()
    except (ImportError, DiveError):
        return False
    return True


def _wordnet() -> Any:
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise DiveError(
            "METEOR with synonyms needs WordNet's data: python -m nltk.downloader wordnet; or do "
            "without synonyms (meteor_synonyms=False, --no-meteor-synonyms)"
        ) from error
    return wordnet
