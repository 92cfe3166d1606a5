"""`dive.evaluate`: predictions against references, every number with the name of its variant."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from dive.data.language import warn_if_not_english
from dive.errors import DiveError
from dive.metrics import overlap
from dive.metrics.bertscore import BertScore
from dive.metrics.bootstrap import Resampling, units_of
from dive.metrics.chexbert import CheXbert
from dive.metrics.green import Green
from dive.metrics.measure import Measure, mean_measure
from dive.metrics.pairs import Pairs, Seeds
from dive.metrics.ratescore import RaTEScore
from dive.metrics.results import all_results
from dive.metrics.scorer import ENGLISH, METRICS, Scorer, ScorerOptions
from dive.radgraph import Annotator

FINISH_REASONS = ("eos", "length", "error")


def evaluate(
    predictions: Sequence[str] | Seeds,
    references: Sequence[str],
    metrics: Sequence[str] = ("bleu", "rougeL"),
    *,
    normalization: str = "lower",
    per_report: bool = False,
    finish_reasons: Sequence[str] | Seeds | None = None,
    rouge_beta: float = overlap.ROUGE_BETA,
    meteor_synonyms: bool = True,
    radgraph: Annotator | str | Path | None = None,
    radgraph_case_sensitive: bool = False,
    chexbert: CheXbert | None = None,
    bertscore: BertScore | None = None,
    ratescore: RaTEScore | None = None,
    green: Green | None = None,
    baseline: Sequence[str] | Seeds | None = None,
    bootstrap: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    patients: Sequence[str | None] | None = None,
    bootstrap_unit: str | None = None,
) -> dict[str, Any]:
    """Score generated reports; the i-th prediction belongs to the i-th reference.

    A pair whose reference is empty (nothing but white space) cannot be scored: it is left out of
    every number and counted. An empty prediction is scored, as the worst, and counted. NaN,
    pandas' NA and texts such as "nan", "N/A" or "-" (`dive.data.absent`) are empty; a warning says
    how many.

    Args:
        predictions: reports as generated; of several training seeds, see `evaluate_seeds`.
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
        bootstrap: number of resamples; adds "intervals", "bootstrap" (the settings), and to every
            difference an interval and a p value (paired; of one metric alone, not corrected for
            their number).
        confidence: share of the resampled values that the intervals hold.
        seed: of the resampling; the same seed gives the same intervals.
        patients: the patient of each reference, None where unknown.
        bootstrap_unit: "report", or "patient": patients are drawn with all their reports. Default:
            "patient" where the patient of every scored reference is known and there are two or
            more of them, else "report"; "bootstrap" says which.

    Returns:
        Numbers under their names, fractions from 0 to 1 (length_ratio any positive number);
        "variants": name -> which variant it is; "reports" given, "scored", "empty_predictions" and
        "empty_references", "placeholders": how many of predictions, references and baseline were
        empty by a word such as "nan"; and what the arguments above add. With "findings" also
        "classes": CheXpert class -> {"references": how many state it, "scores": finding_precision,
        finding_recall, finding_f1 and finding_detail_f1 of its findings}, and "terciles": the same
        of the "rare", "middle" and "common" findings of the references ("findings" their names,
        "references" [least, most]), with "unreferenced", what predictions alone state. There a
        score without a denominator is None, and so is an interval of one that more than half of
        the resamples leave undefined. "intervals", "baseline" and "differences" as above.

    Raises:
        DiveError: lists of different length or not of texts, no pair left to score, an unknown
            metric or normalisation, unknown patients where they are to be drawn, or weights or
            packages of a metric missing.
    """
    pairs = Pairs(references)
    texts = pairs.lists(predictions, "predictions")
    others = None if baseline is None else pairs.lists(baseline, "baseline")
    if per_report and isinstance(predictions, Seeds):
        raise DiveError("per_report is of one list of predictions, not of several seeds")
    units = units_of(pairs.patients(patients), bootstrap_unit)  # checked without bootstrap, too
    resampling = None if bootstrap is None else Resampling(bootstrap, confidence, seed, units)
    options = ScorerOptions(
        metrics=metrics,
        normalization=normalization,
        rouge_beta=rouge_beta,
        meteor_synonyms=meteor_synonyms,
        radgraph=radgraph,
        radgraph_case_sensitive=radgraph_case_sensitive,
        chexbert=chexbert,
        bertscore=bertscore,
        ratescore=ratescore,
        green=green,
    )
    named = {"predictions": texts} | ({} if others is None else {"baseline": others})
    scorer = scorer_of(pairs, named, options)
    ours = [scorer.measures(own) for own in texts]
    theirs = None if others is None else [scorer.measures(own) for own in others]
    if finish_reasons is not None:
        add_termination(ours, pairs.lists(finish_reasons, "finish_reasons"))
    result = all_results(ours, theirs, resampling, isinstance(predictions, Seeds))
    return completed(result, ours[0], pairs, pairs.counts(texts), per_report)


def completed(
    result: dict[str, Any],
    measures: list[Measure],
    pairs: Pairs,
    counts: dict[str, Any],
    per_report: bool,
) -> dict[str, Any]:
    """The result with the variants, the counts, and every report's scores where asked for."""
    result["variants"] = {k: v for measure in measures for k, v in measure.variants.items()}
    result |= counts
    if per_report:
        result["per_report"] = _report_scores(measures, pairs)
    return result


def scorer_of(
    pairs: Pairs, texts: Mapping[str, Sequence[list[str]]], options: ScorerOptions
) -> Scorer:
    """The scorer of `evaluate` for these options, which are checked.

    texts: what they are -> lists of texts that it will score; a warning names those that are not
    English, where a metric reads English.
    """
    metrics = options.metrics
    unknown = [name for name in metrics if name not in METRICS]
    if isinstance(metrics, str) or unknown or not metrics:
        raise DiveError(f"metrics is {metrics!r}, want a list of some of {', '.join(METRICS)}")
    if not options.rouge_beta > 0:
        raise DiveError(f"rouge_beta is {options.rouge_beta!r}, want a number above 0")
    english = [name for name in ENGLISH if name in metrics]
    if english:
        for what, lists in ({"references": [pairs.references]} | dict(texts)).items():
            reader = f"the metric {', '.join(english)}"
            given = [one for one in chain(*lists) if one.strip()]
            warn_if_not_english(given, what, reader, stacklevel=4)
    return Scorer(options, pairs.references, [own for lists in texts.values() for own in lists])


def add_termination(method: list[list[Measure]], reasons: list[list[str]]) -> None:
    """Add termination_rate to the measures of every seed."""
    if len(method) != len(reasons):
        raise DiveError(f"finish_reasons: {len(reasons)} lists for {len(method)} of predictions")
    for measures, own in zip(method, reasons, strict=True):
        measures.append(_termination(own))


def _termination(reasons: list[str]) -> Measure:
    unknown = next((reason for reason in reasons if reason not in FINISH_REASONS), None)
    if unknown is not None:
        raise DiveError(
            f"finish_reasons holds something else, want one of {', '.join(FINISH_REASONS)} each"
        )
    values = [float(reason == "eos") for reason in reasons]
    variant = "share of reports that the model ended itself (finish_reason eos)"
    return mean_measure("termination_rate", values, variant)


def _report_scores(measures: list[Measure], pairs: Pairs) -> dict[str, list[float | None]]:
    """name -> the score of every report, None for pairs left out."""
    columns = {}
    for measure in measures:
        values = measure.scores(measure.statistics)
        for name in measure.per_report:
            column: list[float | None] = [None] * pairs.reports
            for index, value in zip(pairs.indices, values[name], strict=True):
                column[index] = float(value)
            columns[name] = column
    return columns
