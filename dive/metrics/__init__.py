"""Metrics of report generation. `dive.evaluate` runs them; the parts can be used alone."""

from dive.metrics.bertscore import BertScore
from dive.metrics.chexbert import CheXbert
from dive.metrics.evaluation import FINISH_REASONS, METRICS, evaluate
from dive.metrics.export import write_export
from dive.metrics.green import Green
from dive.metrics.methods import evaluate_methods
from dive.metrics.normalization import NORMALIZATIONS
from dive.metrics.ratescore import RaTEScore
from dive.metrics.requirements import requirements
from dive.metrics.seeds import evaluate_seeds
from dive.radgraph import RadGraph, RadGraphFile

__all__ = [
    "FINISH_REASONS",
    "METRICS",
    "NORMALIZATIONS",
    "BertScore",
    "CheXbert",
    "Green",
    "RaTEScore",
    "RadGraph",
    "RadGraphFile",
    "evaluate",
    "evaluate_methods",
    "evaluate_seeds",
    "requirements",
    "write_export",
]
