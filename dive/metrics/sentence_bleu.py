"""Sentence BLEU-2: the mean over reports, as CXR-Report-Metric and ReXrank compute it.

Words are those of CXR-Report-Metric's `prep_reports`: lower case, a full stop is a word of its own,
cut at spaces alone (a line feed or a comma stays part of a word). The score of a report is that of
fast-bleu with the weights (1/2, 1/2): the brevity penalty of the report, and the geometric mean of
the clipped precisions of words and of pairs of words. A precision without a match counts as 0.1
matches (`method1` of Chen and Cherry, "A systematic comparison of smoothing techniques for
sentence-level BLEU", 2014); a report without a common word is 0.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dive.metrics.measure import Measure, mean_measure

_NO_MATCH = 0.1  # fast-bleu's epsilon, which is nltk's


def sentence_words(text: str) -> list[str]:
    """The words of a report as CXR-Report-Metric's `prep_reports` has them."""
    return [word for word in text.lower().replace(".", " .").split(" ") if word]


def sentence_bleu2(prediction: str, reference: str) -> float:
    """Sentence BLEU-2 of one report, 0 to 1."""
    mine, theirs = sentence_words(prediction), sentence_words(reference)
    precisions = []
    for order in (1, 2):
        said, true = _grams(mine, order), _grams(theirs, order)
        matches = sum((said & true).values())
        if order == 1 and not matches:
            return 0.0
        precisions.append((matches or _NO_MATCH) / max(1, said.total()))
    brevity = 1.0 if len(mine) > len(theirs) else math.exp(1 - len(theirs) / len(mine))
    return brevity * math.sqrt(precisions[0] * precisions[1])


def sentence_bleus(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """[reports] float64, sentence BLEU-2 of each."""
    pairs = zip(predictions, references, strict=True)
    return np.array([sentence_bleu2(mine, theirs) for mine, theirs in pairs], dtype=np.float64)


def sentence_bleu_measure(values: np.ndarray) -> Measure:
    """The measure of sentence_bleu2 from `sentence_bleus`."""
    variant = (
        "sentence BLEU-2 of fast-bleu on the words of CXR-Report-Metric, mean over reports "
        "(BLEU of ReXrank)"
    )
    return mean_measure("sentence_bleu2", values.tolist(), variant)


def _grams(words: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[at:] for at in range(order)), strict=False))
