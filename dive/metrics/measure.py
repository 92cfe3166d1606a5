"""The common form of metrics: numbers that add up over reports, and the scores of their sums.

A corpus score is a function of sums over reports (n-gram counts, true positives, F1 and one). With
the numbers of each report, the corpus score, the scores per report and those of every bootstrap
resample follow without another look at the text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Measure:
    """One metric on one list of predictions.

    Attributes:
        statistics: [reports, S], numbers that may be summed over reports.
        scores: from sums [..., S] to name -> [...], under the keys of `dive.evaluate`.
        variants: name -> which variant of the metric the number is, in words.
        per_report: the names that have a meaning for a single report.
    """

    statistics: np.ndarray
    scores: Callable[[np.ndarray], dict[str, np.ndarray]]
    variants: dict[str, str]
    per_report: tuple[str, ...]


def mean_measure(name: str, values: Sequence[float], variant: str) -> Measure:
    """The measure of a score that is the mean of the reports' scores."""
    return means_measure({name: values}, {name: variant})


def means_measure(values: Mapping[str, Sequence[float]], variants: dict[str, str]) -> Measure:
    """The measure of several means over the same reports, each of which counts once."""
    names = tuple(values)
    columns = [np.asarray(values[name], dtype=np.float64) for name in names]
    statistics = np.stack([*columns, np.ones_like(columns[0])], axis=1)

    def scores(totals: np.ndarray) -> dict[str, np.ndarray]:
        return {name: ratio(totals[..., i], totals[..., -1]) for i, name in enumerate(names)}

    return Measure(statistics, scores, variants, names)


def ratio(part: np.ndarray, whole: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """part / whole, and `empty` where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), empty)


def f1(true: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """F1 from counts: true positives, all predicted, all in the reference; 0 where all are 0."""
    return ratio(2 * np.asarray(true), np.asarray(predicted) + np.asarray(actual))
