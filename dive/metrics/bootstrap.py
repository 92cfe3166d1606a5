"""Confidence intervals by resampling reports.

Those of a difference between two sets of predictions for the same reports are paired: both are
scored on the same resample.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dive.errors import DiveError
from dive.metrics.measure import Measure

_CHUNK = 2_000_000  # counts held at a time: 8 MB


def resamples(reports: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each report is drawn, [some samples, reports] at a time, `samples` in all.

    The same seed draws the same reports, so scores are comparable under one seed only.
    """
    rng = np.random.default_rng([seed, 0xD17E])
    step = max(1, _CHUNK // reports)
    for start in range(0, samples, step):
        n = min(step, samples - start)
        drawn = rng.integers(0, reports, size=(n, reports))
        drawn += np.arange(n)[:, None] * reports
        yield np.bincount(drawn.ravel(), minlength=n * reports).reshape(n, reports)


def sign_p_value(differences: np.ndarray) -> float:
    """Twice the smaller share of resamples on either side of 0, never below 2 / (samples + 1)."""
    samples = len(differences)
    smaller = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (samples + 1))


@dataclass(frozen=True)
class Resampling:
    """The settings of a bootstrap over reports.

    Attributes:
        samples: number of resamples.
        confidence: share of the resampled values that an interval holds.
        seed: the same seed draws the same reports.

    Raises:
        DiveError: a setting out of range.
    """

    samples: int
    confidence: float
    seed: int

    def __post_init__(self) -> None:
        samples, seed = self.samples, self.seed
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise DiveError(f"bootstrap is {samples!r}, want a number of resamples, 1 or more")
        if not 0 < self.confidence < 1:
            raise DiveError(f"confidence is {self.confidence!r}, want a number between 0 and 1")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise DiveError(f"seed is {seed!r}, want a whole number, 0 or more")

    def scores(self, measures: Iterable[Measure]) -> dict[str, np.ndarray]:
        """name -> [samples], the corpus scores of every resample."""
        found: dict[str, np.ndarray] = {}
        for measure in measures:
            statistics = measure.statistics.astype(np.float64)
            drawn = resamples(len(statistics), self.samples, self.seed)
            totals = [counts @ statistics for counts in drawn]
            found |= measure.scores(np.concatenate(totals))
        return found

    def interval(self, values: np.ndarray) -> list[float]:
        """[low, high]: the percentiles that hold `confidence` of the resampled values."""
        tail = (1 - self.confidence) / 2
        return [float(v) for v in np.quantile(values, [tail, 1 - tail])]
