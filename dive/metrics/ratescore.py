"""RaTEScore: the agreement of two reports' medical entities, by the `RaTEScore` package.

Zhao et al., "RaTEScore: a metric for radiology report generation", EMNLP 2024. The package is
started in a process of its own (`dive.metrics.isolated`) with its defaults, which are ReXrank's:
the entities of Angelakeke/RaTE-NER-Deberta, the encoder FremyCompany/BioLORD-2023-C and the weights
for long texts.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dive.errors import checks
from dive.errors.private import public_name
from dive.metrics.isolated import Package, device_of, python_of
from dive.metrics.measure import Measure, mean_measure

HUB_NAMES = ("Angelakeke/RaTE-NER-Deberta", "FremyCompany/BioLORD-2023-C")
PACKAGE = Package(
    "RaTEScore",
    "RaTEScore",
    "pip install RaTEScore medspacy pandas (or the extra dive-mrg[ratescore])",
)


class RaTEScore:
    """RaTEScore of pairs of reports, by the package of that name.

    Args:
        python: the Python that has the package; default: this one.
        device: "cpu", "cuda" or "cuda:N".
        ner: folder of the entity model; default: RaTE-NER-Deberta in the Hugging Face cache.
        encoder: folder of the encoder; default: BioLORD-2023-C in the Hugging Face cache.
    """

    def __init__(
        self,
        *,
        python: str | Path | None = None,
        device: str = "cpu",
        ner: str | Path | None = None,
        encoder: str | Path | None = None,
    ) -> None:
        self.python = python_of(python)
        self.device = device_of(f"{PACKAGE.label}: device", device)
        self.ner = None if ner is None else checks.path("ner", ner)
        self.encoder = None if encoder is None else checks.path("encoder", encoder)

    @property
    def source(self) -> str:
        """Version of the package and its models, as they appear in the name of a variant."""
        given = (self.ner, self.encoder)
        names = [
            hub if one is None else public_name(str(one))
            for hub, one in zip(HUB_NAMES, given, strict=True)
        ]
        return f"RaTEScore {PACKAGE.version(self.python)} with {' and '.join(names)}"

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """[reports] float64, 0 to 1; 0.5 where a report has no entity, as the package has it.

        Raises:
            DiveError: the package or its weights are missing, or it fails on a pair.
        """
        settings = {
            "use_gpu": self.device != "cpu",
            "bert_model": None if self.ner is None else str(self.ner.resolve()),
            "eval_model": None if self.encoder is None else str(self.encoder.resolve()),
        }
        return PACKAGE.scores(self.python, self.device, settings, predictions, references)


def ratescore_measure(values: np.ndarray, *, source: str) -> Measure:
    """The measure of ratescore from `RaTEScore.score`; source: package and models."""
    variant = (
        f"RaTEScore, weights for long texts, 0.5 where a report has no entity, mean over reports, "
        f"{source}"
    )
    return mean_measure("ratescore", values.tolist(), variant)
