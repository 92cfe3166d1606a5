"""How the scores of several training seeds differ, beside how the reports or patients differ.

Two different things limit a mean over seeds: another training would have given another number, and
so would other patients. They are stated apart, and together as a two-level bootstrap (seeds and
units drawn with replacement, independently of each other). With three seeds the first part is
rough: a bootstrap of n seeds has only (n - 1) / n of their variance.
"""

from typing import Any

import numpy as np

from dive.metrics.bootstrap import Resampling


def mean_with_both(samples: np.ndarray, seed: int, method: int) -> np.ndarray:
    """[samples], means over as many seeds, drawn anew for every resample.

    Args:
        samples: [seeds, samples], scores on the resamples of the units.
        seed: of the drawing.
        method: 0 for the predictions, 1 for the baseline, whose seeds are drawn independently.
    """
    rng = np.random.default_rng([seed, 0x5EED, method])
    drawn = rng.integers(0, len(samples), size=samples.shape)
    return np.take_along_axis(samples, drawn, axis=0).mean(axis=0)


def seed_spread(
    values: np.ndarray, samples: np.ndarray | None, resampling: Resampling | None
) -> dict[str, Any]:
    """One score over the training seeds.

    Args:
        values: [seeds], NaN where it is undefined.
        samples: [seeds, samples], on the resamples of the units; None without a bootstrap.

    Returns:
        "mean"; "values" per seed; "sd_seeds": standard deviation of the values (n - 1), None with
        one seed. With a bootstrap: "sd_patients": standard deviation of the mean over seeds where
        units (patients, or reports; see "bootstrap") are drawn and the seeds stay; "interval" of
        the same; with two seeds or more "interval_both", where units and seeds are drawn.
    """
    known = not np.isnan(values).any()
    found: dict[str, Any] = {
        "mean": float(values.mean()) if known else None,
        "values": [None if np.isnan(value) else float(value) for value in values],
        "sd_seeds": float(values.std(ddof=1)) if known and len(values) > 1 else None,
    }
    if samples is not None and resampling is not None:
        means = samples.mean(axis=0)
        found["sd_patients"] = resampling.sd(means)
        found["interval"] = resampling.interval(means)
        if len(values) > 1:
            found["interval_both"] = resampling.interval(
                mean_with_both(samples, resampling.seed, 0)
            )
    return found
