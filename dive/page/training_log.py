"""The curves of a training, from the log that `dive distill` writes into its folder."""

import json
import math
from pathlib import Path

from dive.errors import DiveError
from dive.errors.private import line_location
from dive.files.input import lines_of
from dive.page.schema import Curve, Training

LOG_FILE = "log.jsonl"
# about the run and not of a step; the rest are curves
_TOTALS = ("step", "epoch", "total_flos")


def training_of(name: str, path: Path) -> tuple[Training, int]:
    """The curves of one `log.jsonl`, and how many values they lack because these are not finite.

    Args:
        name: of the training, on the page.
        path: the file, or the folder that has it.

    Raises:
        DiveError: there is no such file, a line is no JSON object with a step, or no line holds a
            number.
    """
    if path.is_dir():
        if not (path / LOG_FILE).exists():
            raise DiveError(f"{path} has no {LOG_FILE}, want the folder of a training")
        path = path / LOG_FILE
    curves: dict[str, Curve] = {}
    lost = 0
    for step, logged in _entries(path):
        if "train_runtime" in logged:
            continue  # the summary at the end of a training
        for key, value in logged.items():
            if key in _TOTALS or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not _is_finite(value):
                lost += 1
            else:
                curve = curves.setdefault(key, Curve(name=key, steps=[], values=[]))
                curve["steps"].append(step)
                curve["values"].append(float(value))
    if not curves:
        raise DiveError(f"{path}: holds no curve, want the log of a training (dive distill)")
    return Training(name=name, curves=list(curves.values())), lost


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _entries(path: Path) -> list[tuple[int, dict[str, object]]]:
    found = []
    try:
        lines = list(lines_of(path))
    except OSError as error:
        raise DiveError(f"cannot read {path}: {error}") from error
    for number, line in lines:
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise DiveError(f"{line_location(path, number)}: is not JSON, want a log") from None
        step = entry.get("step") if isinstance(entry, dict) else None
        if isinstance(step, bool) or not isinstance(step, int):
            raise DiveError(f"{line_location(path, number)}: has no step, want a training's log")
        found.append((step, entry))
    return found
