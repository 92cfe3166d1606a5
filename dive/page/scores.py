"""The scores of several methods on the same references, as the page shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dive.metrics import evaluate_methods
from dive.page.metric_labels import metric
from dive.page.schema import Difference, Metric, Score

# a report's own scores that are worth a line beside it, where they were asked for
_OWN = (
    "rougeL", "finding_f1", "finding_detail_f1", "radgraph_partial", "semb", "bertscore",
    "radcliq", "ratescore", "green",
)  # fmt: skip
_DIGITS = 4


@dataclass(frozen=True)
class Scores:
    """Scores by method, in the form of `dive.page.schema`; per_report: name -> one per report."""

    metrics: list[Metric]
    scores: list[dict[str, Score]]
    differences: list[Difference]
    classes: list[dict[str, Any]]
    terciles: list[dict[str, Any]]
    per_report: list[dict[str, list[float | None]]]
    bootstrap: dict[str, Any] | None


def scores_of(
    predictions: Mapping[str, Sequence[str]],
    references: Sequence[str],
    baseline: str,
    metrics: Sequence[str],
    **evaluation: Any,
) -> Scores:
    """The scores of each method by `dive.evaluate_methods`, and their differences from a baseline.

    predictions: name of the method -> its reports in the order of the references. evaluation:
    further arguments.
    """
    found = evaluate_methods(
        predictions, references, metrics, baseline=baseline, per_report=True, **evaluation
    )
    results, number = list(found.values()), list(found).index(baseline)
    variants = {key: words for result in results for key, words in result["variants"].items()}
    return Scores(
        metrics=[metric(key, words) for key, words in variants.items()],
        scores=[_scores(result, list(variants)) for result in results],
        differences=[
            Difference(method=method, baseline=number, scores=result["differences"])
            for method, result in enumerate(results)
            if "differences" in result
        ],
        classes=[result.get("classes", {}) for result in results],
        terciles=[result.get("terciles", {}) for result in results],
        per_report=[
            {
                key: [None if v is None else round(v, _DIGITS) for v in result["per_report"][key]]
                for key in _OWN
                if key in result["per_report"]
            }
            for result in results
        ],
        bootstrap=results[0].get("bootstrap"),
    )


def with_more(scores: Scores, more: Sequence[tuple[Metric, Sequence[Score]]]) -> Scores:
    """The scores with some of the caller's own before them, each with one value per method."""
    return replace(
        scores,
        metrics=[*(one for one, _ in more), *scores.metrics],
        scores=[
            {one["key"]: values[method] for one, values in more} | own
            for method, own in enumerate(scores.scores)
        ],
    )


def _scores(result: dict[str, Any], keys: Sequence[str]) -> dict[str, Score]:
    intervals = result.get("intervals", {})
    return {
        key: Score(value=result[key], interval=intervals.get(key)) for key in keys if key in result
    }
