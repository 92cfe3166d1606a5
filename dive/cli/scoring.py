"""The models and the exports of `dive evaluate`, from its options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dive.cli.options import as_path, quiet_libraries
from dive.cli.predictions import Joined
from dive.errors import DiveError
from dive.errors.counting import counted


def models_of(requested: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `dive.evaluate` for the models of these metrics.

    options: the options of the command by name, those of models among them.
    """
    from dive.metrics import BertScore, CheXbert, Green, RadGraph, RaTEScore
    from dive.metrics.isolated import device_of

    asked = set(requested)
    device = device_of("--metrics-device", options["metrics_device"])
    found: dict[str, Any] = {}
    if asked & {"radgraph", "radcliq"}:
        from dive.metrics.by_models import radgraph_model_of

        found["radgraph"] = options["radgraph_annotations"] or RadGraph(
            options["radgraph_model"] or radgraph_model_of(requested),
            weights=options["radgraph_weights"],
            encoder=options["radgraph_encoder"],
            python=options["radgraph_python"],
        )
        found["radgraph_case_sensitive"] = options["radgraph_case_sensitive"]
    if asked & {"chexbert", "semb", "radcliq"}:
        weights, tokenizer = options["chexbert_weights"], options["chexbert_tokenizer"]
        found["chexbert"] = CheXbert(weights, tokenizer, device=_present(device))
    if asked & {"bertscore", "radcliq"}:
        quiet_libraries()
        found["bertscore"] = BertScore(options["bertscore_model"], device=_present(device))
    if "ratescore" in asked:
        found["ratescore"] = RaTEScore(python=options["ratescore_python"], device=device)
    if "green" in asked:
        model = {} if options["green_model"] is None else {"model": options["green_model"]}
        found["green"] = Green(python=options["green_python"], device=device, **model)
    return found


def _present(device: str) -> str:
    """Returns the device; DiveError where this process cannot use it."""
    if device != "cpu":
        import torch

        number = int(device.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise DiveError(
                f"--metrics-device is {device!r}, want one of the {torch.cuda.device_count()} GPUs "
                "that torch sees, or cpu"
            )
    return device


def exports_of(named: Sequence[str], predictions: int) -> list[tuple[Path, str]]:
    """(FILE, FORMAT) of every --export FORMAT:FILE, for that many files of predictions."""
    from dive.metrics.export import FORMATS

    if named and predictions > 1:
        raise DiveError(
            f"--export is of one file of predictions, and {predictions} are given; run it once per "
            "file"
        )
    found = []
    for text in named:
        format, colon, name = text.partition(":")
        if format not in FORMATS or not colon or not name:
            raise DiveError(
                f"--export is {text!r}, want FORMAT:FILE with one of {', '.join(FORMATS)}"
            )
        found.append((as_path(name), format))
    return found


def write_exports(
    exports: Mapping[Path, str], data: Joined, predictions: Path, target: str
) -> dict[Path, int]:
    """Write every export; FILE -> how many reports are left out, whose reference is empty."""
    from dive.metrics.export import write_export

    (reports,) = data.reports([predictions])
    return {
        path: write_export(format, path, data.ids, data.references(), reports, target=target)
        for path, format in exports.items()
    }


def export_words(format: str, written: int, left_out: int) -> str:
    """What an export has, in words that its path follows."""
    lost = f" ({left_out} without a reference left out)" if left_out else ""
    return f"for {format}: {counted(written, 'report')}{lost} in"


def metrics_of(option: str) -> list[str]:
    """The metrics that --metrics names; DiveError for one that does not exist."""
    from dive.metrics import METRICS

    requested = [name.strip() for name in option.split(",") if name.strip()]
    if not requested or any(name not in METRICS for name in requested):
        raise DiveError(f"--metrics is {option!r}, want some of {','.join(METRICS)}")
    return requested
