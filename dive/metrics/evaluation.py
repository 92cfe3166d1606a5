"""`dive.evaluate`: predictions against references, every number with the name of its variant."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dive.data.language import warn_if_not_english
from dive.errors import DiveError
from dive.metrics import overlap
from dive.metrics.bertscore import BertScore
from dive.metrics.bootstrap import Resampling, sign_p_value
from dive.metrics.chexbert import CheXbert
from dive.metrics.green import Green
from dive.metrics.measure import Measure, mean_measure
from dive.metrics.pairs import Pairs
from dive.metrics.ratescore import RaTEScore
from dive.metrics.scorer import ENGLISH, METRICS, Scorer, ScorerOptions
from dive.radgraph import Annotator, RadGraphFile

FINISH_REASONS = ("eos", "length", "error")


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
    bertscore: BertScore | None = None,
    ratescore: RaTEScore | None = None,
    green: Green | None = None,
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
            (radgraph_{simple,partial,complete,combined}, means over reports) and "chexbert"
            (chexbert{14,5}_{micro,macro}_f1, also with _uncertain_negative); and ReXrank's, means
            over reports: "sentence_bleu" (sentence_bleu2), "semb", "bertscore", "radcliq" (radcliq,
            radcliq_inverse), "ratescore" and "green"; length_ratio always.
        normalization: "raw", "lower" or "r2gen", for bleu, rougeL, meteor and length_ratio; see
            `dive.metrics.normalization`. The others see the reports as they are.
        per_report: adds "per_report": name -> list by reference, None for pairs left out.
        finish_reasons: "eos", "length" or "error" per prediction; adds termination_rate, the share
            of "eos".
        rouge_beta: weight of recall in ROUGE-L (pycocoevalcap's 1.2; 1 is the plain F1).
        meteor_synonyms: whether METEOR also matches WordNet's synonyms (needs its data).
        radgraph: the source of annotations: a `RadGraph` (model), or a file of annotations of
            all texts. Default: the radgraph-xl model with weights in the package's cache, or, if
            "radcliq" is asked for, the model `radgraph`, on which RadCliQ-v1 was fitted.
        radgraph_case_sensitive: compare entities as radgraph 0.1.18 does.
        chexbert: the labeler. Default: `CheXbert()`, weights and tokenizer in the user's cache.
        bertscore, ratescore, green: the models of these. Default: `BertScore()`, `RaTEScore()`,
            `Green()`.
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
    pairs = Pairs(predictions, references, baseline)
    _check_settings(metrics, rouge_beta)
    resampling = None if bootstrap is None else Resampling(bootstrap, confidence, seed)
    _warn_if_not_english(pairs, metrics)
    options = ScorerOptions(
        metrics=tuple(metrics),
        normalization=normalization,
        rouge_beta=rouge_beta,
        meteor_synonyms=meteor_synonyms,
        radgraph=RadGraphFile(radgraph) if isinstance(radgraph, str | Path) else radgraph,
        radgraph_case_sensitive=radgraph_case_sensitive,
        chexbert=chexbert,
        bertscore=bertscore,
        ratescore=ratescore,
        green=green,
    )
    scorer = Scorer(options, pairs.references)
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


def _warn_if_not_english(pairs: Pairs, metrics: Sequence[str]) -> None:
    english = [name for name in ENGLISH if name in metrics]
    if english:
        for what, texts in pairs.texts().items():
            reader = f"the metric {', '.join(english)}"
            warn_if_not_english([one for one in texts if one.strip()], what, reader, stacklevel=4)


def _results(
    pairs: Pairs,
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


def _per_report(measures: list[Measure], pairs: Pairs) -> dict[str, list[float | None]]:
    columns = {}
    for measure in measures:
        values = measure.scores(measure.statistics)
        for name in measure.per_report:
            column: list[float | None] = [None] * pairs.reports
            for index, value in zip(pairs.indices, values[name], strict=True):
                column[index] = float(value)
            columns[name] = column
    return columns
