"""Confidence intervals by resampling reports, or patients with all their reports.

Those of a difference between two sets of predictions for the same reports are paired: both are
scored on the same resample.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dive.errors import DiveError, checks
from dive.metrics.measure import Measure

UNITS = ("report", "patient")
_CHUNK = 2_000_000  # counts held at a time: 8 MB


def resamples(units: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each unit is drawn, [some samples, units] at a time, `samples` in all.

    The same seed draws the same units, so scores are comparable under one seed only.
    """
    rng = np.random.default_rng([seed, 0xD17E])
    step = max(1, _CHUNK // units)
    for start in range(0, samples, step):
        n = min(step, samples - start)
        drawn = rng.integers(0, units, size=(n, units))
        drawn += np.arange(n)[:, None] * units
        yield np.bincount(drawn.ravel(), minlength=n * units).reshape(n, units)


def sign_p_value(differences: np.ndarray) -> float | None:
    """Twice the smaller share of resamples on either side of 0, never below 2 / (samples + 1).

    Resamples without a difference (NaN) are left out; None where that leaves less than half.
    """
    known = _known(differences)
    if known is None:
        return None
    smaller = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(known) + 1))


@dataclass(frozen=True)
class Units:
    """What is drawn: reports, or patients with all their reports (a cluster bootstrap).

    Attributes:
        name: "report" or "patient".
        count: number of units.
        unit_of: [reports], the unit of each report.
        unknown: reports whose patient is not known.
    """

    name: str
    count: int
    unit_of: np.ndarray
    unknown: int

    def sums(self, statistics: np.ndarray) -> np.ndarray:
        """[units, S], statistics summed over the reports of each unit."""
        if self.name == "report":
            return statistics
        sums = np.zeros((self.count, statistics.shape[1]), dtype=statistics.dtype)
        np.add.at(sums, self.unit_of, statistics)
        return sums


def units_of(patients: Sequence[str | None], name: str | None) -> Units:
    """The units of a bootstrap.

    Args:
        patients: the patient of each scored report, None where unknown.
        name: "report", "patient", or None: patients if all of them are known and there are two or
            more, else reports.

    Raises:
        DiveError: another name; or patients are to be drawn and not all of them are known, or all
            reports are of one patient (every resample would be the same).
    """
    if name not in (None, *UNITS):
        raise DiveError(f"bootstrap_unit is {name!r}, want one of {', '.join(UNITS)}")
    reports, unknown = len(patients), sum(patient is None for patient in patients)
    numbers: dict[str | None, int] = {}
    unit_of = np.array([numbers.setdefault(patient, len(numbers)) for patient in patients])
    alone = len(numbers) == 1
    if name == "report" or (name is None and (unknown or alone)):
        return Units("report", reports, np.arange(reports), unknown)
    if unknown:
        raise DiveError(
            f"bootstrap_unit is 'patient', but of {reports} scored references {unknown} have no "
            "patient, want one for each"
        )
    if alone:
        raise DiveError(
            f"bootstrap_unit is 'patient', but all {reports} scored references are of one patient, "
            "want two or more, or bootstrap_unit 'report'"
        )
    return Units("patient", len(numbers), unit_of, 0)


@dataclass(frozen=True)
class Resampling:
    """The settings of a bootstrap.

    Attributes:
        samples: number of resamples.
        confidence: share of the resampled values that an interval holds.
        seed: the same seed draws the same units.
        units: what is drawn.

    Raises:
        DiveError: a setting out of range.
    """

    samples: int
    confidence: float
    seed: int
    units: Units

    def __post_init__(self) -> None:
        samples, seed = self.samples, self.seed
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise DiveError(f"bootstrap is {samples!r}, want a number of resamples, 1 or more")
        if not checks.is_number(self.confidence) or not 0 < self.confidence < 1:
            raise DiveError(f"confidence is {self.confidence!r}, want a number between 0 and 1")
        if self.units.count < 2:
            raise DiveError(
                f"bootstrap draws from {self.units.count} {self.units.name}, want two or more: of "
                "one there is no interval"
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise DiveError(f"seed is {seed!r}, want a whole number, 0 or more")

    def settings(self) -> dict[str, Any]:
        """The settings under the names that `dive.evaluate` returns them by."""
        return {
            "samples": self.samples,
            "confidence": self.confidence,
            "seed": self.seed,
            "unit": self.units.name,
            "units": self.units.count,
            "patients_unknown": self.units.unknown,
        }

    def scores(self, measures: Sequence[Measure]) -> list[dict[str, np.ndarray]]:
        """name -> [samples] per measure, the scores of every resample; all see the same draws."""
        columns = [self.units.sums(measure.statistics).astype(np.float64) for measure in measures]
        totals: list[list[np.ndarray]] = [[] for _ in measures]
        for counts in resamples(self.units.count, self.samples, self.seed):
            drawn = counts.astype(np.float64)
            for sums, statistics in zip(totals, columns, strict=True):
                sums.append(drawn @ statistics)
        return [
            measure.scores(np.concatenate(sums))
            for measure, sums in zip(measures, totals, strict=True)
        ]

    def interval(self, values: np.ndarray) -> list[float] | None:
        """[low, high]: the percentiles that hold `confidence` of the resampled values.

        Resamples on which the score is undefined (NaN: a class that is in none of its reports) are
        left out; None where that leaves less than half.
        """
        known = _known(values)
        if known is None:
            return None
        tail = (1 - self.confidence) / 2
        return [float(v) for v in np.quantile(known, [tail, 1 - tail])]

    def sd(self, values: np.ndarray) -> float | None:
        """The standard deviation of the resampled values (n - 1); None as for `interval`."""
        known = _known(values)
        return None if known is None or len(known) < 2 else float(known.std(ddof=1))


def _known(values: np.ndarray) -> np.ndarray | None:
    """The values without NaN; None where more than half of them are NaN."""
    known = values[~np.isnan(values)]
    return None if 2 * len(known) < len(values) else known
