"""Metrics of packages that run in a process of their own: pairs of reports in, scores out.

Such a package pins libraries that dive does not have, or patches them, so it is not imported here.
Its worker gets one JSON object on stdin ("settings", "predictions", "references") and answers in
JSON lines on stdout: {"score"} for each pair in order, or {"error"}. Nothing is downloaded: the
worker runs with HF_HUB_OFFLINE=1. Its temporary files are in a folder that is removed here, however
it ends. Scores are not kept; `dive.radgraph.model`, which has a process of its own, too, keeps its
annotations.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from dive.errors import DiveError
from dive.errors.private import without_texts

_WORKER = Path(__file__).with_name("pairs_worker.py")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b")
_SHOWN = 300  # characters of a worker's last words
_STARTS = 120  # seconds within which a worker names its version


@dataclass(frozen=True)
class Package:
    """A package that scores pairs of reports.

    Attributes:
        label: its name in errors.
        name: of the distribution, by which the worker knows it.
        install: how to get it, in words.
    """

    label: str
    name: str
    install: str

    def version(self, python: str) -> str:
        """The version of the package for this Python; DiveError where it is not installed."""
        try:
            done = subprocess.run(
                [python, str(_WORKER), self.name, "version"],
                capture_output=True,
                text=True,
                timeout=_STARTS,
            )
        except OSError as error:
            raise DiveError(f"{self.label}: cannot run {python}: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise DiveError(
                f"{self.label}: {python} has not answered within {_STARTS} seconds"
            ) from error
        if done.returncode:
            raise DiveError(
                f"{self.label}: the package is not installed for {python}: {self.install}"
            )
        return done.stdout.strip()

    def scores(
        self,
        python: str,
        device: str,
        settings: dict[str, Any],
        predictions: Sequence[str],
        references: Sequence[str],
    ) -> np.ndarray:
        """[pairs] float64, the package's score of each pair.

        device: "cpu", "cuda" (the first GPU) or "cuda:N"; the process sees no other GPU.

        Raises:
            DiveError: the package or its weights are missing, or it fails on a pair.
        """
        self.version(python)  # before the texts are sent, and with the better message
        texts = [*predictions, *references]
        request = {
            "settings": settings,
            "predictions": list(predictions),
            "references": list(references),
        }
        environment = _environment(self.label, device)
        found: list[float] = []
        with (
            tempfile.TemporaryDirectory(
                prefix="dive-metric-", ignore_cleanup_errors=True
            ) as folder,
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        ):
            with subprocess.Popen(
                [python, str(_WORKER), self.name, "score"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=environment | {"TMPDIR": folder},
            ) as process:
                try:
                    _send(process, request)
                    for answer in _answers(process):
                        which = f"pair {len(found) + 1} of {len(predictions)}"
                        if "error" in answer:
                            raise DiveError(f"{self.label}: {answer['error']} for {which}")
                        found.append(_score_of(answer, self.label, which))
                except BaseException:
                    process.kill()
                    raise
            if process.returncode or len(found) != len(predictions):
                raise DiveError(
                    f"{self.label}: its process ended with exit code {process.returncode} after "
                    f"{len(found)} of {len(predictions)} pairs: {_last_words(log, texts)}"
                )
        return np.array(found, dtype=np.float64)


def python_of(python: str | Path | None) -> str:
    """The Python of a worker: the one that is named, else this one."""
    return str(python or sys.executable)


def device_of(label: str, device: str) -> str:
    """Returns "cpu", "cuda" or "cuda:N" unchanged; DiveError for anything else.

    label: what the device is of, in the error.
    """
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise DiveError(f"{label} is {device!r}, want cpu, cuda or cuda:N")
    return device


def _environment(label: str, device: str) -> dict[str, str]:
    """The worker's environment: one GPU at most, as green_score wants a launcher for several."""
    kind, _, number = device.partition(":")
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    index = int(number or 0)
    if kind == "cuda" and given and index >= len(given):
        raise DiveError(
            f"{label}: device is {device!r}, want one of the {len(given)} GPUs to be seen"
        )
    seen = given[index] if given and kind == "cuda" else str(index)
    only = {"CUDA_VISIBLE_DEVICES": "" if kind == "cpu" else seen, "HF_HUB_OFFLINE": "1"}
    return os.environ | only


def _send(process: "subprocess.Popen[str]", request: dict[str, Any]) -> None:
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            json.dump(request, pipe)
    except BrokenPipeError:
        pass  # it ended, and its exit code and last words say why


def _answers(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def _score_of(answer: dict[str, Any], label: str, which: str) -> float:
    score = float(answer["score"])
    if not math.isfinite(score):
        raise DiveError(f"{label}: the score is {score} for {which}, want a finite number")
    return score


def _last_words(log: IO[str], texts: Sequence[str]) -> str:
    """The last error in a worker's output as one line, without passages of `texts`."""
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()][-40:]
    raised = [number for number, line in enumerate(lines) if _RAISED.match(line)]
    words = " ".join(lines[raised[-1] :] if raised else lines[-1:])
    return without_texts(words[:_SHOWN], texts) or "it said nothing"
