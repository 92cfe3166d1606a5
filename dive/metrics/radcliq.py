"""RadCliQ-v1: one number per report from four metrics, fitted to errors that radiologists counted.

Yu et al., "Evaluating progress in automatic chest X-ray radiology report generation", Patterns
2023. The number is linear in the standardised metrics; lower is better, and that of a copy of the
reference is about -1.44. ReXrank ranks by `radcliq_inverse`, 1 / the mean over reports: the inverse
of the mean, not the mean of inverses (aggregate_metrics.py of ReXrank-metric). It orders only means
above 0, as those of all ranked models are; for a mean of 0 or below it is undefined here, and so is
its interval where one resample has such a mean.
"""

import numpy as np

from dive.errors import DiveError
from dive.metrics.measure import Measure, ratio

# The order of the columns in CXR-Report-Metric (COLS of CXRMetric/run_eval.py).
COMPONENTS = ("radgraph_combined", "bertscore", "semb", "sentence_bleu2")
# The numbers in CXRMetric/radcliq-v1.pkl of CXR-Report-Metric, in full: mean and scale of its
# StandardScaler (160 reports), its coefficients and their intercept. RadEval prints eight digits.
MEANS = (0.5379231241355762, 0.6175725628125001, 0.7647942121140658, 0.44738335396242174)
SCALES = (0.3028258411486429, 0.22430938459304575, 0.2539439110169773, 0.2989271671041838)
COEFFICIENTS = (
    -0.37708368261038905, -0.37030009974480316, -0.25261621789593225, 4.315048405024756e-12,
)  # fmt: skip
INTERCEPT = 2.466552561323256e-10


def radcliq_v1(components: np.ndarray) -> np.ndarray:
    """[...] float64, RadCliQ-v1 from components [..., 4] in the order of COMPONENTS.

    Raises:
        DiveError: not four components.
    """
    values = np.asarray(components, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] != len(COMPONENTS):
        raise DiveError(
            f"components have the shape {values.shape}, want [..., 4]: {', '.join(COMPONENTS)}"
        )
    return (values - MEANS) / SCALES @ np.array(COEFFICIENTS) + INTERCEPT


def radcliq_measure(components: np.ndarray, *, source: str) -> Measure:
    """The measure of radcliq and radcliq_inverse from components [reports, 4].

    source: the origin of the components, in the words of the variant.
    """
    values = radcliq_v1(components)
    statistics = np.stack([values, np.ones_like(values)], axis=1)
    variant = f"RadCliQ-v1 of CXR-Report-Metric, mean over reports, lower is better, {source}"
    inverse = "1 / mean of RadCliQ-v1 over reports (1/RadCliQ-v1 of ReXrank), higher is better"
    variants = {"radcliq": variant, "radcliq_inverse": f"{inverse}, {source}"}
    return Measure(statistics, _scores, variants, ("radcliq",))


def _scores(totals: np.ndarray) -> dict[str, np.ndarray]:
    mean = ratio(totals[..., 0], totals[..., 1])
    # It jumps from -inf to inf at 0: where one resample's mean is there, no interval holds for any.
    inverse = np.full_like(mean, np.nan) if (mean <= 0).any() else 1.0 / mean
    return {"radcliq": mean, "radcliq_inverse": inverse}
