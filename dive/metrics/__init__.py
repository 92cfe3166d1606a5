"""Metrics of report generation. `dive.evaluate` runs them; the parts can be used alone."""

from dive.metrics.chexbert import CheXbert
from dive.metrics.evaluation import FINISH_REASONS, METRICS, evaluate
from dive.metrics.normalization import NORMALIZATIONS
from dive.metrics.radgraph_file import RadGraphFile
from dive.metrics.radgraph_model import RadGraph
from dive.metrics.requirements import requirements

__all__ = [
    "FINISH_REASONS",
    "METRICS",
    "NORMALIZATIONS",
    "CheXbert",
    "RadGraph",
    "RadGraphFile",
    "evaluate",
    "requirements",
]
