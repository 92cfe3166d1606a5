"""`dive.evaluate_seeds`: predictions of several trainings that differ in their seed alone."""

from collections.abc import Sequence
from typing import Any

from dive.errors import DiveError
from dive.metrics.evaluation import evaluate
from dive.metrics.pairs import Seeds


def evaluate_seeds(
    predictions: Sequence[Sequence[str]],
    references: Sequence[str],
    metrics: Sequence[str] = ("bleu", "rougeL"),
    *,
    finish_reasons: Sequence[Sequence[str]] | None = None,
    baseline: Sequence[Sequence[str]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score the predictions of several training seeds: every number is the mean over them.

    Args:
        predictions: one list of reports per training seed.
        references: reports as written by a radiologist, one per prediction of each list.
        metrics: as of `dive.evaluate`.
        finish_reasons: one list per training seed.
        baseline: one list, or as many as there are of predictions. Differences are those of the
            means, on the same resamples.
        options: all other arguments of `dive.evaluate`, but for per_report.

    Returns:
        What `dive.evaluate` returns, as means over the seeds (of classes: None where a score is
        undefined in one of the seeds); "empty_predictions" is of all lists together. Besides:

        "seeds": {"count": n, "scores": name -> {"mean"; "values", one per seed; "sd_seeds", their
        standard deviation (n - 1), None with one seed}}. With a bootstrap also "sd_patients", the
        standard deviation of the mean over seeds when patients (or reports, see
        result["bootstrap"]["unit"]) are drawn anew and the seeds stay; "interval" of the same; and
        "interval_both", where seeds are drawn as well (with two seeds or more). The last one is
        rough with three seeds. "baseline_seeds": the same of the baseline. Differences have an
        "interval_both", too.

    Raises:
        DiveError: as `dive.evaluate`; texts in place of lists of texts, or another number of lists
            in baseline or finish_reasons.
    """
    ours = _lists("predictions", predictions)
    theirs = None if baseline is None else _lists("baseline", baseline)
    if theirs is not None and len(theirs) not in (1, len(ours)):
        raise DiveError(
            f"baseline: {len(theirs)} lists for {len(ours)} of predictions, want 1 or as many"
        )
    reasons = None if finish_reasons is None else _lists("finish_reasons", finish_reasons)
    return evaluate(ours, references, metrics, finish_reasons=reasons, baseline=theirs, **options)


def _lists(what: str, values: Any) -> Seeds:
    lists = [] if isinstance(values, str) else list(values)
    if not lists or any(isinstance(one, str) for one in lists):
        raise DiveError(f"{what} holds no lists of texts, want one list per training seed")
    return Seeds(lists)
