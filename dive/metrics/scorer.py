"""A scorer: every metric that was asked for, on lists of predictions for the same references."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dive.metrics import overlap
from dive.metrics.bertscore import BertScore
from dive.metrics.by_models import Models
from dive.metrics.chexbert import CheXbert
from dive.metrics.findings import Stated, finding_measure
from dive.metrics.green import Green
from dive.metrics.measure import Measure, mean_measure
from dive.metrics.meteor import meteor_measure
from dive.metrics.normalization import words
from dive.metrics.ratescore import RaTEScore
from dive.radgraph import Annotator

METRICS = (
    "bleu", "rougeL", "meteor", "findings", "radgraph", "chexbert",
    "sentence_bleu", "semb", "bertscore", "radcliq", "ratescore", "green",
)  # fmt: skip
# those that understand English
ENGLISH = ("findings", "radgraph", "chexbert", "semb", "bertscore", "radcliq", "ratescore", "green")


@dataclass(frozen=True)
class ScorerOptions:
    """The arguments of `dive.evaluate` that say what is computed, and with which models."""

    metrics: Sequence[str]
    normalization: str = "lower"
    rouge_beta: float = overlap.ROUGE_BETA
    meteor_synonyms: bool = True
    radgraph: Annotator | str | Path | None = None
    radgraph_case_sensitive: bool = False
    chexbert: CheXbert | None = None
    bertscore: BertScore | None = None
    ratescore: RaTEScore | None = None
    green: Green | None = None


class Scorer:
    """A scorer of lists of predictions against the same references; models are loaded once."""

    def __init__(
        self, options: ScorerOptions, references: list[str], lists: Sequence[list[str]]
    ) -> None:
        self.options, self.references = options, references
        self._reference_words = [words(text, options.normalization) for text in references]
        self._models = Models(options, references, lists)
        self._stated: dict[str, Stated] = {}  # by text: the lexicon reads references once

    def measures(self, predictions: list[str]) -> list[Measure]:
        """The measures of these predictions, one of the lists, in the order of METRICS."""
        options, requested = self.options, self.options.metrics
        split = [words(text, options.normalization) for text in predictions]
        found = _overlap_measures(split, self._reference_words, options)
        if "meteor" in requested:
            found.append(
                meteor_measure(
                    split,
                    self._reference_words,
                    synonyms=options.meteor_synonyms,
                    normalization=options.normalization,
                )
            )
        if "findings" in requested:
            found.append(finding_measure(predictions, self.references, self._stated))
        return found + self._models.measures(predictions)


def _overlap_measures(
    predictions: list[list[str]],
    references: list[list[str]],
    options: ScorerOptions,
) -> list[Measure]:
    metrics, normalization, rouge_beta = options.metrics, options.normalization, options.rouge_beta
    measures = []
    lengths = np.zeros((len(predictions), 2 + 2 * overlap.ORDERS), dtype=np.int64)
    if "bleu" in metrics:
        lengths = overlap.bleu_statistics(predictions, references)
        names = tuple(f"bleu{n}" for n in range(1, overlap.ORDERS + 1))
        variant = f"corpus BLEU as in pycocoevalcap, one reference, {normalization} words"
        measures.append(
            Measure(lengths, _bleu_scores, {n: f"{variant}, {n[-1]}-grams" for n in names}, names)
        )
    else:
        lengths[:, 0] = [len(text) for text in predictions]
        lengths[:, 1] = [len(text) for text in references]
    if "rougeL" in metrics:
        values = [
            overlap.rouge_l(mine, theirs, rouge_beta)
            for mine, theirs in zip(predictions, references, strict=True)
        ]
        variant = (
            f"ROUGE-L F with beta {rouge_beta:g}, as in pycocoevalcap, mean over reports, "
            f"{normalization} words"
        )
        measures.append(mean_measure("rougeL", values, variant))
    variant = f"{normalization} words of all predictions over those of all references"
    measures.append(
        Measure(
            lengths[:, :2],
            lambda totals: {"length_ratio": overlap.length_ratio(totals)},
            {"length_ratio": variant},
            ("length_ratio",),
        )
    )
    return measures


def _bleu_scores(totals: np.ndarray) -> dict[str, np.ndarray]:
    scores = overlap.bleu_from_totals(totals)
    return {f"bleu{n + 1}": scores[..., n] for n in range(overlap.ORDERS)}
