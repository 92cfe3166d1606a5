"""The scores of several methods on the same references, as the page shows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dive.metrics import evaluate
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
    predictions: Sequence[Sequence[str]],
    references: Sequence[str],
    baseline: int,
    metrics: Sequence[str],
    *,
    finish_reasons: Sequence[Sequence[str] | None],
    bootstrap: int | None,
    **evaluation: Any,
) -> Scores:
    """Scores each method by `dive.evaluate`, and its differences from the baseline.

    predictions: per method, its reports in the order of the references. evaluation: further
    arguments of `dive.evaluate`.
    """
    results = [
        evaluate(
            texts,
            references,
            metrics,
            per_report=True,
            finish_reasons=reasons,
            baseline=None if method == baseline else predictions[baseline],
            bootstrap=bootstrap,
            **evaluation,
        )
        for method, (texts, reasons) in enumerate(zip(predictions, finish_reasons, strict=True))
    ]
    variants = {key: words for result in results for key, words in result["variants"].items()}
    return Scores(
        metrics=[metric(key, words) for key, words in variants.items()],
        scores=[_scores(result, list(variants)) for result in results],
        differences=[
            Difference(method=method, baseline=baseline, scores=result["differences"])
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


def _scores(result: dict[str, Any], keys: Sequence[str]) -> dict[str, Score]:
    intervals = result.get("intervals", {})
    return {
        key: Score(value=result[key], interval=intervals.get(key)) for key in keys if key in result
    }
