"""The names of scores on the page, their units, and which direction is better."""

from typing import Literal

from dive.page.schema import Metric

_LABELS = {
    "bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3", "bleu4": "BLEU-4",
    "sentence_bleu2": "sentence BLEU-2", "rougeL": "ROUGE-L", "meteor": "METEOR",
    "finding_precision": "finding precision", "finding_recall": "finding recall",
    "finding_f1": "finding F1", "finding_state_f1": "F1 with state",
    "finding_side_f1": "F1 with side", "finding_severity_f1": "F1 with severity",
    "finding_detail_f1": "F1 with side and severity",
    "radgraph_simple": "RadGraph simple", "radgraph_partial": "RadGraph partial",
    "radgraph_complete": "RadGraph complete", "radgraph_combined": "RadGraph combined",
    "semb": "SembScore", "bertscore": "BERTScore", "radcliq": "RadCliQ-v1",
    "radcliq_inverse": "1/RadCliQ-v1", "ratescore": "RaTEScore", "green": "GREEN",
    "termination_rate": "ended by itself", "length_ratio": "length ratio",
}  # fmt: skip
# values of these are no shares of 1
_RATIOS = ("length_ratio", "radcliq", "radcliq_inverse")

Better = Literal["higher", "lower", "near 1", "none"]
_BETTER: dict[str, Better] = {"radcliq": "lower", "length_ratio": "near 1"}


def metric(key: str, variant: str) -> Metric:
    """The entry of one score, under its key in `dive.evaluate`."""
    return Metric(
        key=key,
        label=_LABELS.get(key) or _of_chexbert(key) or key,
        variant=variant,
        better=_BETTER.get(key, "higher"),
        unit="ratio" if key in _RATIOS else "fraction",
    )


def _of_chexbert(key: str) -> str | None:
    """ "chexbert5_macro_f1_uncertain_negative" in words."""
    if not key.startswith("chexbert"):
        return None
    classes, average, _, *reading = key.removeprefix("chexbert").split("_")
    label = f"CheXbert {classes} {average} F1"
    return f"{label}, uncertain negative" if reading else label
