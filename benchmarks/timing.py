"""Interleaved timing, and what a result must say about the machine and the versions it is of."""

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(
    functions: dict[str, Callable[[], object]], rounds: int
) -> dict[str, dict[str, float]]:
    """Median seconds of each, run in turns so that a noisy moment meets them all alike.

    `cpu` is the time of this process on all its threads, which neighbours disturb less; `wall` is
    what a clock shows. The first round is a warm-up.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            if turn:
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "wall": statistics.median(wall for wall, _ in times),
            "cpu": statistics.median(cpu for _, cpu in times),
        }
        for name, times in taken.items()
    }


def machine() -> dict[str, Any]:
    """Processor, versions, commit and date, for a results file."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "device": processor,
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 1),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or None,
        "date": datetime.date.today().isoformat(),
    }


def write(name: str, result: dict[str, Any]) -> Path:
    """benchmarks/results/<name>.json, with the machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**machine(), **result}, indent=2) + "\n", encoding="utf-8")
    return path
