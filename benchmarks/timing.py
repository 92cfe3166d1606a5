"""Interleaved timing, peak memory, and results files with their machine and commit.

DIVE_BENCH_TOY=1 sets toy sizes in every benchmark; their results never go to benchmarks/results.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from dive.bench import timing as bench_timing
from dive.bench.machine import facts, version
from dive.bench.timing import Call, cpu_seconds, gpu_seconds, repeats_for, turns

__all__ = ["Call", "version"]  # of dive.bench, for the suites

TOY = os.environ.get("DIVE_BENCH_TOY") == "1"
RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")


def interleaved(
    functions: dict[str, Call], rounds: int, device: torch.device = CPU
) -> dict[str, dict[str, float]]:
    """Returns the median seconds per call of each, run in turns so that noise affects all alike.

    On a CPU `cpu` is the time of all threads of this process, which others disturb less, and `wall`
    is wall-clock time. On a GPU `gpu` is the time between two events on the stream;
    calls below 5 ms are repeated between them, so that the first one's launch counts little. The
    first round is a warm-up.
    """
    if device.type == "cuda":
        repeats = {name: repeats_for(function, 50) for name, function in functions.items()}
        on_gpu = turns(
            {n: partial(gpu_seconds, f, repeats[n]) for n, f in functions.items()}, rounds
        )
        return {name: {"gpu": statistics.median(values)} for name, values in on_gpu.items()}
    on_cpu = turns({name: partial(cpu_seconds, f) for name, f in functions.items()}, rounds)
    return {
        name: {
            "wall": statistics.median(wall for wall, _ in times),
            "cpu": statistics.median(cpu for _, cpu in times),
        }
        for name, times in on_cpu.items()
    }


def clock(device: torch.device) -> str:
    """Returns the clock by which results on this device are compared."""
    return "gpu" if device.type == "cuda" else "cpu"


def graphed(call: Call, device: torch.device) -> Call:
    """Returns replays of a CUDA graph of the call, without its launches; on a CPU the call."""
    if device.type != "cuda":
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    return lambda: (graph.replay(), kept)[1]  # the graph's memory holds its results


def peak_extra_bytes(function: Call, device: torch.device = CPU) -> int:
    """Returns the peak memory of one call, in bytes beyond what was allocated before it."""
    function()  # compiles and fills caches
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    held = most = 0
    results: Any = profile.profiler
    for event in sorted(results.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def working(functions: dict[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    """Returns the functions that run, and why others do not: memory, compiler, device."""
    good, why = {}, {}
    for name, function in functions.items():
        try:
            function()
        except Exception as error:
            text = " ".join(str(error).split())
            why[name] = f"{type(error).__name__}: {text}"[:300]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        else:
            good[name] = function
    return good, why


def interval(values: list[float]) -> list[float]:
    """Returns the median with its 95% interval, by order statistics."""
    return [round(x, 4) for x in bench_timing.interval(values)]


def default_device() -> torch.device:
    """Returns the first GPU if there is one; a toy run stays on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and not TOY else "cpu")


def short_name(device: torch.device) -> str:
    """Returns the prefix of the names of results files: cpu, h100, h200, a100 ..."""
    if device.type == "cpu":
        return "cpu"
    name = torch.cuda.get_device_name(device).lower()
    found = re.search(r"\b([abhl]\d{2,3}|gb\d{3}|rtx\D{0,8}\d{4})", name)
    return re.sub(r"\W+", "-", found[1] if found else name).strip("-")


@cache
def commit() -> str:
    """Returns $DIVE_COMMIT, else the checkout's commit, marked if tracked sources differ from it.

    If neither is known (a copy without git), it is a digest of the sources, which identifies their
    results. `python -m benchmarks.timing` prints that of a checkout.
    """
    if os.environ.get("DIVE_COMMIT"):
        return os.environ["DIVE_COMMIT"]
    here = Path(__file__).parents[1]
    others = ("--", ".", ":!benchmarks/results", ":!benchmarks/README.md")

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        name = git("rev-parse", "--short=9", "HEAD")
        dirty = git("status", "--porcelain", "--untracked-files=no", *others)
    except OSError:
        name = dirty = ""
    return f"{name}{'-dirty' if dirty else ''}" if name else sources()


def sources() -> str:
    """Returns a digest of the sources that are measured and that measure."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    kinds = {".py", ".cpp", ".h", ".cu", ".cuh"}
    for folder in ("benchmarks", "csrc", "dive", "kernels"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in kinds and path.is_file():
                digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return f"sources-{digest.hexdigest()[:9]}"


def machine(device: torch.device = CPU) -> dict[str, Any]:
    """Returns device, versions, commit and time for a results file."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        **facts(device),
        "commit": commit(),
        "date": now.date().isoformat(),
        "time": now.strftime("%H:%M UTC"),
    }


@cache
def folder() -> Path:
    """Returns $OUT, else benchmarks/results, but never that for a toy run."""
    given = os.environ.get("OUT")
    if not given and TOY:
        given = tempfile.mkdtemp(prefix="dive-bench-toy-")
    path = Path(given) if given else RESULTS
    if TOY and path.resolve() == RESULTS.resolve():
        raise SystemExit("a toy run measures nothing: OUT must not be benchmarks/results")
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(name: str, result: dict[str, Any], device: torch.device = CPU) -> Path:
    """Writes <name>.json with the machine to the results folder, atomically."""
    path = folder() / f"{name}.json"
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps({**machine(device), **result}, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path


def earlier(name: str, device: torch.device) -> dict[str, Any] | None:
    """Returns <name>.json if it is of this commit and device, from $OUT or benchmarks/results."""
    if commit().endswith("-dirty"):
        return None
    for place in (folder(), *([] if TOY else [RESULTS])):
        path = place / f"{name}.json"
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            now = machine(device)
            if all(found.get(k) == now[k] for k in ("commit", "device", "torch")):
                return found
    return None


class ResultsFile:
    """A results file of many cases, written case by case; continues where it stopped.

    head: the fields before the cases. minutes: no case is begun after that time. cases: words, of
    which the name of a chosen case has one; without any all are chosen. Others are left.
    """

    def __init__(
        self,
        name: str,
        head: dict[str, Any],
        device: torch.device = CPU,
        *,
        again: bool = False,
        minutes: float | None = None,
        cases: Sequence[str] = (),
    ) -> None:
        self.name, self.device, self.chosen = name, device, cases
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.result = {**head, "complete": False, "cases": []}
        before = None if again else earlier(name, device)
        if before is not None and all(before.get(k) == json_like(v) for k, v in head.items()):
            self.result["cases"] = before.get("cases", [])

    def wanted(self, case: str) -> bool:
        """Whether this case is chosen and not measured yet, and there is time for it."""
        if any(one["case"] == case for one in self.result["cases"]):
            return False
        chosen = not self.chosen or any(word in case for word in self.chosen)
        late = self.end is not None and time.monotonic() > self.end
        if chosen and not late:
            return True
        self.result.setdefault("left", []).append(case)
        if chosen:
            print(f"no time is left for: {case}", flush=True)
        return False

    def add(self, case: dict[str, Any]) -> None:
        self.result["cases"].append(case)
        write(self.name, self.result, self.device)

    def close(self) -> Path:
        """Marks the file complete unless a case was left out, and writes it."""
        self.result["complete"] = not self.result.get("left")
        return write(self.name, self.result, self.device)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `options_of` reads."""
    parser.add_argument("--minutes", type=float, help="begin no case after that many")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument(
        "--cases", nargs="+", default=[], metavar="WORD", help="those whose name holds one of these"
    )


def options_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the options for `ResultsFile`."""
    return {name: getattr(options, name) for name in ("minutes", "again", "cases")}


def json_like(value: Any) -> Any:
    """Returns a value as JSON restores it."""
    return json.loads(json.dumps(value))


if __name__ == "__main__":
    print(sources())
