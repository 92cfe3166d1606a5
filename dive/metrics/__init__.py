"""Metrics of report generation. `dive.evaluate` runs them; the parts can be used alone."""

from dive.metrics.evaluation import METRICS, evaluate
from dive.metrics.normalization import NORMALIZATIONS
from dive.metrics.requirements import requirements

__all__ = ["METRICS", "NORMALIZATIONS", "evaluate", "requirements"]
