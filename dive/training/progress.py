"""The progress of a training: a bar for a person, lines of JSON for a program."""

import json
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback

from dive.errors.console import PlainConsole, column
from dive.files.atomic import append_line, write_text


class ProgressBar(TrainerCallback):
    """A bar on stderr with the latest losses; validation results as lines above it."""

    def __init__(self, console: PlainConsole) -> None:
        self._console = console
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._bar = Progress(
            column("distilling"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            column("{task.fields[losses]}"),
            console=self._console,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "distilling", total=state.max_steps, completed=state.global_step, losses=""
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self._bar is None or not logs:
            return
        if "loss" in logs:
            self._bar.update(self._task, losses=summary(logs))
        elif "eval_loss" in logs:
            self._bar.console.print(f"step {state.global_step}, validation: {summary(logs)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def summary(logs: dict[str, float]) -> str:
    """The loss, and the loss and accuracy by token class, in one short line."""
    prefix = "eval_" if "eval_loss" in logs else ""
    parts = [f"loss {logs[prefix + 'loss']:.3f}"]
    for name in ("template", "pathology", "eos"):
        if f"{prefix}loss_{name}" in logs:
            accuracy = 100 * logs[f"{prefix}accuracy_{name}"]
            parts.append(f"{name} {logs[f'{prefix}loss_{name}']:.3f} ({accuracy:.0f}%)")
    return "  ".join(parts)


class JsonLog(TrainerCallback):
    """The log as lines of JSON, with every step once.

    A resumed training repeats the steps after its checkpoint, whose earlier lines are dropped. A
    training that starts anew drops the whole log of the one before.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and self._path.exists():
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _logged_until(line, state.global_step)]
            write_text(self._path, "".join(line + "\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            append_line(self._path, json.dumps({**logs, "step": state.global_step}) + "\n")


def _logged_until(line: str, step: int) -> bool:
    """Whether the line is complete, of step `step` or before, and not the summary of a training."""
    try:
        entry = json.loads(line)
        return 0 < entry["step"] <= step and "train_runtime" not in entry
    except (ValueError, TypeError, KeyError):
        return False
