"""SembScore: the cosine of two reports' CheXbert embeddings, mean over reports.

The embedding of a report is the last hidden state of the first token of CheXbert's BERT, as in
CXR-Report-Metric (CheXbert/src/encode.py and `add_semb_col` of run_eval.py).
"""

import numpy as np

from dive.errors import DiveError
from dive.metrics.measure import Measure, mean_measure


def cosines(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """[reports] float64, the cosine of each pair of embeddings [reports, hidden]; 0 for a zero one.

    Raises:
        DiveError: embeddings of different shapes.
    """
    if predictions.ndim != 2 or predictions.shape != references.shape:
        raise DiveError(
            f"embeddings have the shapes {predictions.shape} and {references.shape}, want two of "
            "[reports, hidden]"
        )
    mine, theirs = predictions.astype(np.float64), references.astype(np.float64)
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    return np.where(lengths > 0, (mine * theirs).sum(axis=1) / np.where(lengths > 0, lengths, 1), 0)


def semb_measure(values: np.ndarray, *, source: str) -> Measure:
    """The measure of semb from `cosines`; source: the encoder, in the words of the variant."""
    variant = f"SembScore of CXR-Report-Metric, cosine of embeddings, mean over reports, {source}"
    return mean_measure("semb", values.tolist(), variant)
