"""Corpus BLEU-1..4 and ROUGE-L in the conventions of pycocoevalcap, one reference per report.

Both start from numbers per report, so that a bootstrap does not count words again.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

ORDERS = 4
# pycocoevalcap's guards against 0/0 and log 0. They move a score by less than 1e-8, but a corpus
# without one common 4-gram scores about 1e-5 (few words: 1e-8) and not 0.
TINY, SMALL = 1e-15, 1e-9
ROUGE_BETA = 1.2

Words = Sequence[Hashable]


def bleu_statistics(predictions: Sequence[Words], references: Sequence[Words]) -> np.ndarray:
    """[reports, 10] int64: words predicted, words of the reference, then for orders 1 to 4 the
    n-grams of the prediction, and those of them that the reference has too (clipped)."""
    rows = np.zeros((len(predictions), 2 + 2 * ORDERS), dtype=np.int64)
    for row, prediction, reference in zip(rows, predictions, references, strict=True):
        row[0], row[1] = len(prediction), len(reference)
        for n in range(1, ORDERS + 1):
            row[1 + n] = max(0, len(prediction) - n + 1)
            row[1 + ORDERS + n] = _common(_ngrams(prediction, n), _ngrams(reference, n))
    return rows


def _ngrams(words: Words, n: int) -> Counter:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def _common(mine: Counter, theirs: Counter) -> int:
    if len(theirs) < len(mine):
        mine, theirs = theirs, mine
    get = theirs.get
    return sum(min(count, get(ngram, 0)) for ngram, count in mine.items())


def bleu_from_totals(totals: np.ndarray) -> np.ndarray:
    """[..., 4] float64: BLEU-1 to BLEU-4 from statistics summed over a corpus, [..., 10]."""
    totals = np.asarray(totals, dtype=np.float64)
    predicted, reference = totals[..., 0], totals[..., 1]
    offered, common = totals[..., 2 : 2 + ORDERS], totals[..., 2 + ORDERS :]
    precision = (common + TINY) / (offered + SMALL)
    scores = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (predicted + TINY) / (reference + SMALL)
    # an empty corpus divides by nearly 0: exp(-huge) is the intended 0
    with np.errstate(over="ignore"):
        brevity = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return scores * brevity[..., None]


def longest_common_subsequence(a: Words, b: Words) -> int:
    """The length of the longest common subsequence, in one step per word of `b`.

    The row of the dynamic programme is one big integer, whose zero bits are the positions of `a`
    where the length increases (the bit-vector method of Hyyrö).
    """
    positions: dict[Hashable, int] = {}
    for i, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matched = row & positions.get(word, 0)
        row = (row + matched | row - matched) & full
    return len(a) - row.bit_count()


def rouge_l(prediction: Words, reference: Words, beta: float = ROUGE_BETA) -> float:
    """ROUGE-L of one report, 0 to 1: (1 + beta^2) P R / (R + beta^2 P); beta > 1 favours recall.
    0 where either has no words."""
    common = longest_common_subsequence(reference, prediction)
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    weight = beta**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def length_ratio(totals: np.ndarray) -> np.ndarray:
    """Words predicted over words of the references, from summed BLEU statistics [..., 10]."""
    totals = np.asarray(totals, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(totals[..., 1] > 0, totals[..., 0] / totals[..., 1], math.nan)
