"""Processes killed at any instant: what they leave is gone on from, to what nobody disturbed."""

import json
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.hard import processes
from tests.hard.trial import Outcome, Trial

IN_A_ROW = 3  # kills of one run, at most, before it is left to finish
PATIENCE = 60.0  # seconds to wait for what a kill is aimed at


def generate(count: int, seed: int, folder: Path) -> Outcome:
    """`dive generate`, half of the kills at random instants and half when a row appears."""
    from tiny import save_studies, save_tiny_llava

    draw, outcome = random.Random(seed), Outcome()
    model, log = save_tiny_llava(folder / "model"), folder / "log"
    studies = save_studies(folder / "studies", 12) / "studies.jsonl"

    def command(out: Path) -> list[str]:
        return [
            "generate", "--backbone", str(model), "--studies", str(studies), "--out", str(out),
            "--max-new-tokens", "12", "--batch-size", "3", "--device", "cpu",
        ]  # fmt: skip

    wanted_file = folder / "undisturbed.jsonl"
    seconds = _undisturbed(command(wanted_file), log)
    wanted = _rows(wanted_file)
    run = kept = 0
    while outcome.tried < count:
        out = folder / f"{run}.jsonl"
        rows = folder / f"{run}.jsonl.partial"
        for _ in range(draw.randint(1, IN_A_ROW)):
            process = processes.start(command(out), log)
            if draw.random() < 0.5:
                killed = processes.kill_after(process, draw.uniform(0, seconds))
            else:
                size = draw.randrange(1, wanted_file.stat().st_size)
                killed = _kill_when(process, partial(_grown, rows, size), draw, 0.002)
            outcome.tried += killed
            kept += killed and _size(rows) > 0
            if out.exists() or outcome.tried >= count:
                break
        status = 0 if out.exists() else _finished(command(out), log)
        if status != 0 or not out.exists() or _rows(out) != wanted:
            outcome.faults.append(f"seed {seed}, run {run}: exit {status}, {out} differs")
        run += 1
    outcome.figures = {"runs": run, "killed with rows written": kept}
    return outcome


def distill(count: int, seed: int, folder: Path) -> Outcome:
    """`dive distill`, half of the kills while a checkpoint is written, a tenth at the end."""
    from tiny import save_studies, save_tiny_llava

    draw, outcome = random.Random(seed), Outcome()
    model, log = save_tiny_llava(folder / "model"), folder / "log"
    studies = save_studies(folder / "studies") / "studies.jsonl"

    def command(out: Path, *more: str) -> list[str]:
        return [
            "distill", "--backbone", str(model), "--studies", str(studies), "--out", str(out),
            "--preset", "dive-ce", "--steps", "6", "--batch-size", "2", "--set", "save_steps=2",
            "--set", "calibration_studies=2", "--device", "cpu", *more,
        ]  # fmt: skip

    wanted = folder / "undisturbed"
    seconds = _undisturbed(command(wanted), log)
    run = aimed = hit = 0
    while outcome.tried < count:
        out = folder / f"run-{run}"
        more: list[str] = []
        for _ in range(draw.randint(1, IN_A_ROW)):
            process = processes.start(command(out, *more), log)
            kind = draw.random()
            if kind < 0.5:
                time.sleep(draw.uniform(0, seconds / 2))
                killed = _kill_when(process, partial(_writing, out), draw, 0.02)
                aimed += killed
                hit += killed and _writing(out)
            elif kind < 0.6:
                killed = _kill_when(process, partial(_ending, out), draw, 0.01)
            else:
                killed = processes.kill_after(process, draw.uniform(0, seconds))
            outcome.tried += killed
            if _over(out) or outcome.tried >= count:
                break
            more = ["--resume"]
        status = 0 if _over(out) else _finished(command(out, "--resume"), log)
        fault = f"exit {status}" if status else _unlike(out, wanted)
        if fault:
            outcome.faults.append(f"seed {seed}, run {run}: {out}: {fault}")
        run += 1
    outcome.figures = {
        "runs": run, "aimed at a checkpoint": aimed, "killed inside one": hit,
        "temporary files left": len(list(folder.rglob("*.tmp"))),
    }  # fmt: skip
    return outcome


def _undisturbed(command: list[str], log: Path) -> float:
    """Seconds that a command takes when nothing has to be imported for it any more."""
    processes.run([command[0], "--help"], log)  # the first process waits for the imports
    began = time.monotonic()
    if processes.run(command, log) != 0:
        raise RuntimeError(f"the undisturbed run fails: {log.read_text()[-2000:]}")
    return time.monotonic() - began


def _finished(command: list[str], log: Path) -> int | str:
    """The exit status, or that it took too long."""
    try:
        return processes.run(command, log)
    except TimeoutError as error:
        return str(error)


def _kill_when(process: Any, reached: Callable[[], bool], draw: random.Random, late: float) -> bool:
    """Kill -9 up to `late` seconds after something is reached; whether it was still running."""
    ends = time.monotonic() + PATIENCE
    while process.exitcode is None and not reached():
        if time.monotonic() > ends:
            process.kill()
            process.join()
            raise TimeoutError(f"process {process.pid} never came to where it was to be killed")
        time.sleep(0.0003)
    return processes.kill_after(process, draw.uniform(0, late))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _grown(path: Path, size: int) -> bool:
    return _size(path) >= size


def _rows(path: Path) -> list[dict[str, Any]] | None:
    """Every row but for the time that it took; None where a line is no row."""
    try:
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    except ValueError:
        return None
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def _writing(out: Path) -> bool:
    return (out / "checkpoints" / ".unfinished").exists()


def _ending(out: Path) -> bool:
    """Whether the adapter is being saved, or what it was made of removed."""
    return any(out.glob(".adapter*.tmp")) or (out / "adapter.safetensors").exists()


def _over(out: Path) -> bool:
    """Whether a training is finished, and has cleared everything away."""
    left = out / "checkpoints"
    names = {name.partition("-")[0] for name in os.listdir(left)} if left.is_dir() else set()
    return (out / "adapter_config.json").exists() and not names & {
        "checkpoint",
        ".unfinished",
        "run.json",
    }


def _unlike(out: Path, wanted: Path) -> str:
    """How a folder differs from the undisturbed training's; "" where it does not."""
    if not _over(out):
        return f"not over: {sorted(os.listdir(out) + os.listdir(out / 'checkpoints'))}"
    if (out / "adapter.safetensors").read_bytes() != (wanted / "adapter.safetensors").read_bytes():
        return "another adapter"
    told = []
    for folder in (out, wanted):
        settings = json.loads((folder / "adapter_config.json").read_bytes())
        settings["metadata"]["distillation"].pop("seconds")
        told.append(settings)
    return "" if told[0] == told[1] else "other settings beside the same weights"


GENERATE = Trial("generate", generate, full=200, short=1)
DISTILL = Trial("distill", distill, full=200, short=1)
