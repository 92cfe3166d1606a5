"""The metrics that read reports with a model, and the leaderboards' metrics made from them.

What several metrics share (annotations, embeddings) is computed once per list of predictions, and
the references' part once.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dive.metrics.bertscore import BertScore, bertscore_measure
from dive.metrics.chexbert import CheXbert, chexbert_measure
from dive.metrics.green import Green, green_measure
from dive.metrics.measure import Measure
from dive.metrics.radcliq import radcliq_measure
from dive.metrics.radgraph_scores import radgraph_combined, radgraph_measure
from dive.metrics.ratescore import RaTEScore, ratescore_measure
from dive.metrics.semb import cosines, semb_measure
from dive.metrics.sentence_bleu import sentence_bleu_measure, sentence_bleus
from dive.radgraph import Annotation, Annotator, RadGraph, RadGraphFile

if TYPE_CHECKING:
    from dive.metrics.scorer import ScorerOptions


def radgraph_model_of(metrics: Sequence[str]) -> str:
    """The RadGraph model for these metrics where none is named.

    RadCliQ-v1 was fitted on annotations of the first one; RadGraph F1 is usually of radgraph-xl.
    """
    return "radgraph" if "radcliq" in metrics else "radgraph-xl"


class Models:
    """The models of the metrics that were asked for, and what they find in the references.

    lists: every list of predictions that will be scored; a model in a process of its own reads
    them all in one go, because it is loaded anew for each.
    """

    def __init__(
        self, options: "ScorerOptions", references: list[str], lists: Sequence[list[str]]
    ) -> None:
        self.options, self.references, self.lists = options, references, lists

    @cached_property
    def annotator(self) -> Annotator:
        given = self.options.radgraph
        if isinstance(given, str | Path):
            return RadGraphFile(given)
        return given or RadGraph(radgraph_model_of(self.options.metrics))

    @cached_property
    def labeler(self) -> CheXbert:
        return self.options.chexbert or CheXbert()

    @cached_property
    def bertscore(self) -> BertScore:
        return self.options.bertscore or BertScore()

    @cached_property
    def labels(self) -> np.ndarray:
        return self.labeler.labels_of(self.embeddings)

    @cached_property
    def embeddings(self) -> np.ndarray:
        return self.labeler.embed(self.references)

    @cached_property
    def ratescore(self) -> RaTEScore:
        return self.options.ratescore or RaTEScore()

    @cached_property
    def green(self) -> Green:
        return self.options.green or Green()

    @cached_property
    def ratescores(self) -> dict[int, np.ndarray]:
        return self._of_all(self.ratescore)

    @cached_property
    def greens(self) -> dict[int, np.ndarray]:
        return self._of_all(self.green)

    def _of_all(self, scorer: RaTEScore | Green) -> dict[int, np.ndarray]:
        """id of each list -> the scores of its reports."""
        every = [text for own in self.lists for text in own]
        values = scorer.score(every, self.references * len(self.lists))
        parts = np.split(values, len(self.lists))
        return {id(own): part for own, part in zip(self.lists, parts, strict=True)}

    def measures(self, predictions: list[str]) -> list[Measure]:
        """The measures of these predictions, one of the lists, in the order of `METRICS`."""
        scores = _Scores(self, predictions)
        measures = {
            "radgraph": scores.radgraph,
            "chexbert": scores.chexbert,
            "sentence_bleu": lambda: sentence_bleu_measure(scores.sentence_bleus),
            "semb": scores.semb,
            "bertscore": scores.bertscore,
            "radcliq": scores.radcliq,
            "ratescore": scores.ratescore,
            "green": scores.green,
        }
        return [make() for name, make in measures.items() if name in self.options.metrics]


class _Scores:
    """The scores of one list of predictions."""

    def __init__(self, models: Models, predictions: list[str]) -> None:
        self.models, self.predictions = models, predictions
        self.references = models.references

    @cached_property
    def annotations(self) -> tuple[list[Annotation], list[Annotation]]:
        """Those of the predictions and of the references."""
        found = self.models.annotator.annotate([*self.predictions, *self.references])
        return found[: len(self.predictions)], found[len(self.predictions) :]

    @cached_property
    def sentence_bleus(self) -> np.ndarray:
        return sentence_bleus(self.predictions, self.references)

    @cached_property
    def cosines(self) -> np.ndarray:
        return cosines(self.embeddings, self.models.embeddings)

    @cached_property
    def embeddings(self) -> np.ndarray:
        return self.models.labeler.embed(self.predictions)

    @cached_property
    def bertscores(self) -> np.ndarray:
        return self.models.bertscore.score(self.predictions, self.references)

    def radgraph(self) -> Measure:
        mine, theirs = self.annotations
        return radgraph_measure(
            mine,
            theirs,
            case_sensitive=self.models.options.radgraph_case_sensitive,
            source=self.models.annotator.source,
        )

    def chexbert(self) -> Measure:
        labels = self.models.labeler.labels_of(self.embeddings)
        return chexbert_measure(labels, self.models.labels, source=self.models.labeler.source)

    def semb(self) -> Measure:
        return semb_measure(self.cosines, source=self.models.labeler.encoder)

    def bertscore(self) -> Measure:
        return bertscore_measure(self.bertscores, source=self.models.bertscore.source)

    def radcliq(self) -> Measure:
        pairs = zip(*self.annotations, strict=True)
        combined = np.array([radgraph_combined(mine, theirs) for mine, theirs in pairs])
        columns = (combined, self.bertscores, self.cosines, self.sentence_bleus)
        models = self.models
        sources = models.annotator.source, models.bertscore.source, models.labeler.encoder
        return radcliq_measure(np.stack(columns, axis=1), source="; ".join(sources))

    def ratescore(self) -> Measure:
        values = self.models.ratescores[id(self.predictions)]
        return ratescore_measure(values, source=self.models.ratescore.source)

    def green(self) -> Measure:
        values = self.models.greens[id(self.predictions)]
        return green_measure(values, source=self.models.green.source)
