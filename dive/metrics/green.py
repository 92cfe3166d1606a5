"""GREEN: matched findings over matched findings and significant errors, by a language model.

Ostmeier et al., "GREEN: generative radiology report evaluation and error notation", Findings of
EMNLP 2024. The package `green_score` is started in a process of its own (`dive.metrics.isolated`);
written for Python 3.12 and transformers 4.40, it usually needs another Python than dive's.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dive.errors import checks
from dive.errors.private import public_name
from dive.metrics.isolated import Package, device_of, python_of
from dive.metrics.measure import Measure, mean_measure

MODEL = "StanfordAIMI/GREEN-radllama2-7b"  # the name in the package's README and in ReXrank's
PACKAGE = Package(
    "GREEN",
    "green_score",
    "install green_score of github.com/Stanford-AIMI/GREEN into a Python of its own (0.0.12 wants "
    "Python 3.12.1 and torch 2.2.2) and name that Python (python=)",
)


class Green:
    """GREEN scores of pairs of reports, by the package `green_score`.

    Args:
        python: the Python that has the package; default: this one.
        model: folder of the language model, or its name in the Hugging Face cache; default:
            StanfordAIMI/GREEN-radllama2-7b.
        device: "cpu", "cuda" or "cuda:N".
    """

    def __init__(
        self,
        *,
        python: str | Path | None = None,
        model: str | Path = MODEL,
        device: str = "cpu",
    ) -> None:
        self.python = python_of(python)
        self.device = device_of(f"{PACKAGE.label}: device", device)
        self.model = model if isinstance(model, str) else str(checks.path("model", model).resolve())

    @property
    def source(self) -> str:
        """Version of the package and the model, as they appear in the name of a variant."""
        return f"green_score {PACKAGE.version(self.python)} with {public_name(self.model, True)}"

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """[reports] float64, 0 to 1; 0 where the model's answer names no matched finding.

        An answer that is cut off (prompt and answer have 2,048 tokens) or has another form is one
        of those: the package (0.0.12) does not tell them apart.

        Raises:
            DiveError: the package or its weights are missing, or it fails on a pair.
        """
        settings = {"model": self.model, "cpu": self.device == "cpu"}
        return PACKAGE.scores(self.python, self.device, settings, predictions, references)


def green_measure(values: np.ndarray, *, source: str) -> Measure:
    """The measure of green from `Green.score`; source: package and model."""
    variant = f"GREEN, 0 where the answer names no matched finding, mean over reports, {source}"
    return mean_measure("green", values.tolist(), variant)
