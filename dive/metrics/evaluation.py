"""`dive.evaluate`: predictions against references, every number with the name of its variant."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dive.data.absent import is_placeholder
from dive.data.language import warn_if_not_english
from dive.data.reading_summary import PLACEHOLDERS
from dive.errors import DiveError
from dive.metrics import overlap
from dive.metrics.bootstrap import Resampling, sign_p_value
from dive.metrics.chexbert import CheXbert, chexbert_measure
from dive.metrics.findings import finding_measure
from dive.metrics.measure import Measure, mean_measure
from dive.metrics.meteor import meteor_measure
from dive.metrics.normalization import words
from dive.metrics.radgraph_scores import radgraph_measure
from dive.radgraph import Annotator, RadGraph, RadGraphFile

log = logging.getLogger(__name__)

FINISH_REASONS = ("eos", "length", "error")
ENGLISH = ("findings", "radgraph", "chexbert")  # those that understand English
METRICS = ("bleu", "rougeL", "meteor", "findings", "radgraph", "chexbert")


def evaluate(
    predictions: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str] = ("bleu", "rougeL"),
    *,
    normalization: str = "lower",
    per_report: bool = False,
    finish_reasons: Sequence[str] | None = None,
    rouge_beta: float = overlap.ROUGE_BETA,
    meteor_synonyms: bool = True,
    radgraph: Annotator | str | Path | None = None,
    radgraph_case_sensitive: bool = False,
    chexbert: CheXbert | None = None,
    baseline: Sequence[str] | None = None,
    bootstrap: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Score generated reports; the i-th prediction belongs to the i-th reference.

    A pair whose reference is empty (nothing but white space) cannot be scored: it is left out of
    every number and counted. An empty prediction is scored, as the worst, and counted. NaN,
    pandas' NA and texts such as "nan", "N/A" or "-" (`dive.data.absent`) are empty; a warning says
    how many.

    Args:
        predictions: reports as generated.
        references: reports as written by a radiologist, one per prediction.
        metrics: any of "bleu" (bleu1 .. bleu4, corpus scores), "rougeL" and "meteor" (means over
            reports; the second needs nltk), "findings" (finding_precision, finding_recall,
            finding_f1 and finding_{state,side,severity,detail}_f1), "radgraph"
            (radgraph_{simple,partial,complete}, means over reports) and "chexbert"
            (chexbert{14,5}_{micro,macro}_f1, also with _uncertain_negative); length_ratio always.
        normalization: "raw", "lower" or "r2gen", for bleu, rougeL, meteor and length_ratio; see
            `dive.metrics.normalization`. The others see the reports as they are.
        per_report: adds "per_report": name -> list by reference, None for pairs left out.
        finish_reasons: "eos", "length" or "error" per prediction; adds termination_rate, the share
            of "eos".
        rouge_beta: weight of recall in ROUGE-L (pycocoevalcap's 1.2; 1 is the plain F1).
        meteor_synonyms: whether METEOR also matches WordNet's synonyms (needs its data).
        radgraph: the source of annotations: a `RadGraph` (model), or a file of annotations of
            all texts. Default: the radgraph-xl model with weights in the package's cache.
        radgraph_case_sensitive: compare entities as radgraph 0.1.18 does.
        chexbert: the labeler. Default: `CheXbert()`, weights and tokenizer in the user's cache.
        baseline: other predictions for the same references; adds "baseline", their scores, and
            "differences", prediction minus baseline.
        bootstrap: number of resamples of the reports; adds "intervals", and to every difference an
            interval and a p value (paired; of one metric alone, not corrected for their number).
        confidence: share of the resampled values that the intervals hold.
        seed: of the resampling; the same seed gives the same intervals.

    Returns:
        Numbers under their names, fractions from 0 to 1 (length_ratio any positive number);
        "variants": name -> which variant it is; "reports" given, "scored", "empty_predictions" and
        "empty_references", "placeholders": how many of predictions, references and baseline were
        empty by a word such as "nan"; and what the arguments above add.

    Raises:
        DiveError: lists of different length or not of texts, no pair left to score, an unknown
            metric or normalisation, or weights or packages of a metric missing.
    """
    pairs = _Pairs(predictions, references, baseline)
    _check_settings(metrics, rouge_beta)
    resampling = None if bootstrap is None else Resampling(bootstrap, confidence, seed)
    _warn_if_not_english(pairs, metrics)
    options = _Options(
        metrics=tuple(metrics),
        normalization=normalization,
        rouge_beta=rouge_beta,
        meteor_synonyms=meteor_synonyms,
        radgraph=RadGraphFile(radgraph) if isinstance(radgraph, str | Path) else radgraph,
        radgraph_case_sensitive=radgraph_case_sensitive,
        chexbert=chexbert,
    )
    scorer = _Scorer(options, pairs.references)
    measures = scorer.measures(pairs.predictions)
    others = scorer.measures(pairs.baseline) if pairs.baseline is not None else None
    if finish_reasons is not None:
        measures.append(_termination(pairs.scored(finish_reasons, "finish_reasons")))
    return _results(pairs, measures, others, per_report, resampling)


def _check_settings(metrics: Sequence[str], rouge_beta: float) -> None:
    unknown = [name for name in metrics if name not in METRICS]
    if isinstance(metrics, str) or unknown or not metrics:
        raise DiveError(f"metrics is {metrics!r}, want a list of some of {', '.join(METRICS)}")
    if not rouge_beta > 0:
        raise DiveError(f"rouge_beta is {rouge_beta!r}, want a number above 0")


def _warn_if_not_english(pairs: "_Pairs", metrics: Sequence[str]) -> None:
    english = [name for name in ENGLISH if name in metrics]
    if english:
        for what, texts in pairs.texts().items():
            reader = f"the metric {', '.join(english)}"
            warn_if_not_english([one for one in texts if one.strip()], what, reader, stacklevel=4)


def _results(
    pairs: "_Pairs",
    measures: list[Measure],
    baseline: list[Measure] | None,
    per_report: bool,
    resampling: Resampling | None,
) -> dict[str, Any]:
    """The results of `evaluate`, from the measures of the predictions and of the baseline."""
    scores = _corpus_scores(measures)
    result: dict[str, Any] = dict(scores)
    result["variants"] = {k: v for measure in measures for k, v in measure.variants.items()}
    result |= pairs.counts()
    if per_report:
        result["per_report"] = _per_report(measures, pairs)
    samples: dict[str, np.ndarray] = {}
    if resampling is not None:
        samples = resampling.scores(measures)
        result["bootstrap"] = asdict(resampling)
        result["intervals"] = {k: resampling.interval(v) for k, v in samples.items()}
    if baseline is not None:
        result["baseline"] = other_scores = _corpus_scores(baseline)
        differences: dict[str, dict[str, Any]] = {
            k: {"difference": scores[k] - v} for k, v in other_scores.items()
        }
        if resampling is not None:
            for name, values in resampling.scores(baseline).items():
                gaps = samples[name] - values
                differences[name] |= {
                    "interval": resampling.interval(gaps),
                    "p": sign_p_value(gaps),
                }
        result["differences"] = differences
    return result


@dataclass(frozen=True)
class _Options:
    metrics: tuple[str, ...]
    normalization: str
    rouge_beta: float
    meteor_synonyms: bool
    radgraph: Annotator | None
    radgraph_case_sensitive: bool
    chexbert: CheXbert | None


class _Scorer:
    """A scorer of lists of predictions against the same references; models are loaded once."""

    def __init__(self, options: _Options, references: list[str]) -> None:
        self.options, self.references = options, references
        self._reference_words = [words(text, options.normalization) for text in references]
        self._annotator = options.radgraph or RadGraph()
        self._labeler = options.chexbert or CheXbert()
        self._reference_labels: np.ndarray | None = None

    def measures(self, predictions: list[str]) -> list[Measure]:
        """The measures of these predictions, in the order of METRICS."""
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
            found.append(finding_measure(predictions, self.references))
        if "radgraph" in requested:
            found.append(self._radgraph(predictions))
        if "chexbert" in requested:
            found.append(self._chexbert(predictions))
        return found

    def _radgraph(self, predictions: list[str]) -> Measure:
        annotations = self._annotator.annotate([*predictions, *self.references])
        return radgraph_measure(
            annotations[: len(predictions)],
            annotations[len(predictions) :],
            case_sensitive=self.options.radgraph_case_sensitive,
            source=self._annotator.source,
        )

    def _chexbert(self, predictions: list[str]) -> Measure:
        if self._reference_labels is None:
            self._reference_labels = self._labeler.label(self.references)
        labels = self._labeler.label(predictions)
        return chexbert_measure(labels, self._reference_labels, source=self._labeler.source)


def _overlap_measures(
    predictions: list[list[str]],
    references: list[list[str]],
    options: _Options,
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


def _termination(reasons: list[str]) -> Measure:
    unknown = next((reason for reason in reasons if reason not in FINISH_REASONS), None)
    if unknown is not None:
        raise DiveError(
            f"finish_reasons holds something else, want one of {', '.join(FINISH_REASONS)} each"
        )
    values = [float(reason == "eos") for reason in reasons]
    variant = "share of reports that the model ended itself (finish_reason eos)"
    return mean_measure("termination_rate", values, variant)


def _corpus_scores(measures: list[Measure]) -> dict[str, float]:
    return {
        name: float(value)
        for measure in measures
        for name, value in measure.scores(measure.statistics.sum(axis=0)).items()
    }


def _per_report(measures: list[Measure], pairs: "_Pairs") -> dict[str, list[float | None]]:
    columns = {}
    for measure in measures:
        values = measure.scores(measure.statistics)
        for name in measure.per_report:
            column: list[float | None] = [None] * pairs.reports
            for index, value in zip(pairs.indices, values[name], strict=True):
                column[index] = float(value)
            columns[name] = column
    return columns


class _Pairs:
    """The pairs that can be scored, and their indices among all pairs."""

    def __init__(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        baseline: Sequence[str] | None,
    ) -> None:
        self.placeholders: Counter[str] = Counter()
        references = self._texts("references", _listed("references", references))
        self.reports = len(references)
        self.indices = [i for i, text in enumerate(references) if text.strip()]
        if not self.indices:
            raise DiveError(
                f"nothing to score: of {self.reports} references none holds any text"
                if self.reports
                else "nothing to score: no references were given"
            )
        self.references = [references[i] for i in self.indices]
        self.predictions = self.scored(predictions, "predictions")
        self.baseline = None if baseline is None else self.scored(baseline, "baseline")

    def scored(self, values: Sequence[str], what: str) -> list[str]:
        every = _listed(what, values)
        if len(every) != self.reports:
            raise DiveError(
                f"{what}: {len(every)} for {self.reports} references, want one per reference"
            )
        texts = self._texts(what, every)
        return [texts[i] for i in self.indices]

    def _texts(self, what: str, values: list[Any]) -> list[str]:
        empty = [is_placeholder(value) for value in values]
        texts = ["" if lost else value for lost, value in zip(empty, values, strict=True)]
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise DiveError(f"{what}[{i}] is a {type(text).__name__}, want a text")
        if any(empty):
            self.placeholders[what] = lost = sum(empty)
            log.warning("%s: %d of %d are empty (%s)", what, lost, len(texts), PLACEHOLDERS)
        return texts

    def texts(self) -> dict[str, list[str]]:
        found = {"references": self.references, "predictions": self.predictions}
        return found | ({} if self.baseline is None else {"baseline": self.baseline})

    def counts(self) -> dict[str, Any]:
        return {
            "placeholders": dict(self.placeholders),
            "reports": self.reports,
            "scored": len(self.indices),
            "empty_predictions": sum(not text.strip() for text in self.predictions),
            "empty_references": self.reports - len(self.indices),
        }


def _listed(what: str, values: Any) -> list[Any]:
    """The values as a list, in their order: a pandas Series is indexed by its labels."""
    ordered = not isinstance(values, (str, bytes, Mapping, Set)) and not hasattr(values, "columns")
    if not ordered or not isinstance(values, Iterable):
        got = "one text" if isinstance(values, str) else f"a {type(values).__name__}"
        raise DiveError(f"{what} is {got}, want a list of texts")
    return list(values)
