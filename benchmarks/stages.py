"""The stages of benchmarks/gpu.sh, each with a process, a time limit and a JSON file.

A stage whose results file is complete, of this commit and of this device is skipped, except
`build`, which changes the machine; one that ran out of time continues where it stopped. What was
not run is recorded with its reason, and never as clean. A stage ends by itself within --seconds,
and a benchmark begins no case in the last third of them.
"""

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import processes, timing
from benchmarks.processes import LATE, python
from benchmarks.timing import TOY

ROOT = Path(__file__).parents[1]
SECONDS = 300  # per stage: two of them and the start fit into a visit of 15 minutes
BEGIN = 2 / 3  # share of a stage's seconds after which a benchmark begins no case
WHEELS = ROOT / "wheels"
WORKERS = 8  # processes of tests/gpu, whose time is mostly compilation
TESTS = os.environ.get("DIVE_GPU_TESTS", "tests/gpu")
# small tests of every kernel, as each takes many times as long under a sanitizer. None captures a
# graph: every allocation is a cudaMalloc there, which a capture refuses
SANITIZED = os.environ.get(
    "DIVE_SANITIZE_TESTS",
    "tests/gpu -k every_kernel",
)
REFUSALS = (
    "device not supported", "not supported on", "unsupported", "failed to initialize",
    "unable to", "insufficient permission", "permission denied", "no attachable process",
    "before first instrumented api call", "debugger",
)  # fmt: skip

Command = list[str]


class Shell:
    """A runner of the commands of one stage within its time."""

    def __init__(self, limit: float = SECONDS) -> None:
        self.end = time.monotonic() + limit

    def run(self, command: Command, **environment: str) -> tuple[int, str]:
        """Returns the exit status (124: out of time) and the output."""
        print("$", *command, flush=True)
        left = max(1.0, self.end - time.monotonic())
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log")
            env = os.environ | environment
            status = processes.bounded(command, left, log, cwd=ROOT, env=env, grace=2)
            return status, log.read_text(encoding="utf-8", errors="replace")


def tail(output: str, lines: int = 30) -> list[str]:
    """Returns the last non-empty lines."""
    return [line[:300] for line in output.splitlines() if line.strip()][-lines:]


def build(shell: Shell) -> dict[str, Any]:
    """Installs the wheels of wheels/, then the checkout with its extension."""
    wheels = {}
    pip = ("-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check")
    for path in sorted(WHEELS.glob("*.whl")):
        name = path.name.split("-")[0].replace("_", "-")
        if timing.version(name) == path.name.split("-")[1]:
            wheels[path.name] = "was installed"
            continue
        status, output = shell.run(
            python(*pip, "--no-index", str(path)), PIP_BREAK_SYSTEM_PACKAGES="1"
        )
        wheels[path.name] = "installed" if status == 0 else " ".join(tail(output, 3))
    # at toy size the package is not built, which takes a minute
    dry = ("--dry-run",) if TOY else ()
    status, output = shell.run(
        python(*pip, "--no-build-isolation", *dry, "-v", "-e", "."),
        DIVE_BUILD_CUDA=os.environ.get("DIVE_BUILD_CUDA", "auto"),
        PIP_BREAK_SYSTEM_PACKAGES="1",
    )
    look = "import json; from dive.decode import native; print(json.dumps(native.build_info()))"
    _, info = shell.run(python("-c", look))
    nvcc = shell.run([_cuda_tool("nvcc"), "--version"])
    return {
        "state": "passed" if status == 0 else "failed",
        "wheels": wheels,
        "architectures": os.environ.get("DIVE_CUDA_ARCHS"),
        "nvcc": tail(nvcc[1], 2) if nvcc[0] == 0 else "not found",
        "extension": _last_json(info),
        "output": tail(output),
    }


def test(shell: Shell) -> dict[str, Any]:
    """Runs tests/gpu, or those of $DIVE_GPU_TESTS (paths and options of pytest)."""
    command = python("-m", "pytest", "-v", "-rs", "--tb=short", "-p", "no:cacheprovider")
    command += ["--durations", "10"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(WORKERS, os.cpu_count() or 1)), "--dist", "worksteal"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command += ["--timeout", "120"]
    status, output = shell.run([*command, *shlex.split(TESTS)])
    result = outcome(status, output)
    if result["state"] != "passed":
        print(output, flush=True)  # all of it: the results file only has the end
    return {"tests": TESTS, **result}


_VERDICT = r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b"


def outcome(status: int, output: str) -> dict[str, Any]:
    """Returns the outcome of a verbose pytest run, complete or not, with or without workers."""
    found = re.findall(rf"^(\S+::\S.*?) {_VERDICT}", output, re.M)
    of_workers = rf"^\[gw\d+\] \[ *\d+%\] {_VERDICT} (\S+::.*?) *$"
    found += [(test, word) for word, test in re.findall(of_workers, output, re.M)]
    counts = {word: [t for t, w in found if w == word] for _, word in found}
    result: dict[str, Any] = {word.lower(): len(tests) for word, tests in counts.items()}
    bad = counts.get("FAILED", []) + counts.get("ERROR", [])
    if not counts.get("PASSED") and not bad and status in (0, 5):
        result["state"] = "not run"
        reasons = re.findall(r"^SKIPPED \[\d+\] (.*)$", output, re.M)
        result["reason"] = "; ".join(reasons)[:400] or "no test was collected"
    elif status == LATE:
        result["state"] = "out of time"
    else:
        result["state"] = "passed" if status == 0 else "failed"
    if result["state"] not in ("passed", "not run"):
        result |= {"failing": bad, "output": tail(output, 60)}
    return result


def sanitize(shell: Shell) -> dict[str, Any]:
    """Runs compute-sanitizer over a part of tests/gpu ($DIVE_SANITIZE_TESTS)."""
    result: dict[str, Any] = {"tests": SANITIZED}
    program = _cuda_tool("compute-sanitizer")
    tests = python("-m", "pytest", "-v", "-p", "no:cacheprovider", *shlex.split(SANITIZED))
    for index, tool in enumerate(("memcheck", "racecheck")):
        part = Shell((shell.end - time.monotonic()) / (2 - index))
        if shutil.which(program) is None:
            result[tool] = {"state": "not run", "reason": "compute-sanitizer is not installed"}
        elif not torch.cuda.is_available():
            result[tool] = {"state": "not run", "reason": "there is no CUDA device"}
        else:
            options = ["--tool", tool, "--target-processes", "all", "--error-exitcode", "86"]
            status, output = part.run(
                [program, *options, *tests], PYTORCH_NO_CUDA_MEMORY_CACHING="1"
            )
            result[tool] = verdict(status, output)
    states = {result[tool]["state"] for tool in ("memcheck", "racecheck")}
    worst = ("errors", "out of time", "not run", "clean")
    return {"state": next(state for state in worst if state in states), **result}


def verdict(status: int, output: str) -> dict[str, Any]:
    """Returns what compute-sanitizer found; clean needs its summary and a test that passed."""
    summaries = re.findall(r"^=+ *((?:ERROR|RACECHECK) SUMMARY: .*)$", output, re.M)
    passed = len(re.findall(r"::\S.*? PASSED\b", output))
    found: dict[str, Any] = {"tests_passed": passed, "summary": summaries}
    errors = [line for line in summaries if not re.search(r"SUMMARY: 0 (errors|hazards)", line)]
    if errors or status == 86:
        return {"state": "errors", **found, "output": tail(output, 60)}
    refusal = next(
        (
            line.strip()
            for line in output.splitlines()
            if line.startswith("=====") and any(word in line.lower() for word in REFUSALS)
        ),
        None,
    )
    if refusal is not None:
        return {"state": "not run", "reason": refusal, **found}
    if status == LATE:
        return {"state": "out of time", **found}
    if not summaries or not passed or status != 0:
        reason = "no summary" if not summaries else "no test passed" if not passed else "pytest"
        return {"state": "not run", "reason": f"{reason}; exit status {status}", **found,
                "output": tail(output)}  # fmt: skip
    return {"state": "clean", **found}


def _cuda_tool(name: str) -> str:
    beside = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / name
    return shutil.which(name) or str(beside)


def _last_json(output: str) -> Any:
    for line in reversed(output.splitlines()):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return None


OWN: dict[str, Callable[[Shell], dict[str, Any]]] = {
    "build": build,
    "test": test,
    "sanitize": sanitize,
}
# stage -> module, and the name of its results file after the device
BENCHMARKS = {
    "peers": ("peers", "peers", []),
    "loss": ("bench_cross_entropy", "cross-entropy", []),
    "steer": ("bench_steer", "steer", []),
    "steer-grouped": ("bench_steer_grouped", "steer-grouped", []),
    "decode": ("bench_decode", "decode-pairs", ["--pairs"]),
    "distill": ("bench_distill", "distill-run", []),
    # the shape of most benchmarks; at toy size there is only one
    "tune": ("tune", "tune", [] if TOY else ["--dtype=bfloat16", "--width=4096", "--rank=16"]),
}
# of `all`
ORDER = (
    "build", "test", "peers", "loss", "steer", "steer-grouped", "decode", "distill", "sanitize",
)  # fmt: skip


def run(
    stage: str,
    device: torch.device,
    again: bool,
    seconds: float = SECONDS,
    cases: Sequence[str] = (),
) -> bool:
    """Runs one stage; returns whether nothing failed."""
    name = results_name(stage, device)
    # a build is on one machine: a results file of another one does not show that it exists here
    before = None if stage == "build" or again else timing.earlier(name, device)
    if before is not None and before.get("complete"):
        print(f"{stage}: {name}.json is of this commit and complete; --again repeats it")
        return True
    start, shell = time.monotonic(), Shell(seconds)
    if stage in OWN:
        result = OWN[stage](shell)
        result["complete"] = result["state"] in ("passed", "clean")
        good = result["state"] in ("passed", "clean", "not run")
        head = {"what": f"{stage}: {(OWN[stage].__doc__ or '').splitlines()[0]}"}
        took = round(time.monotonic() - start, 1)
        path = timing.write(name, {**head, **result, "seconds": took}, device)
        print(f"{stage}: {result['state']}, {took} s; {path}", flush=True)
        return good
    module, _, more = BENCHMARKS[stage]
    command = python("-m", f"benchmarks.{module}", "--device", device.type, *more)
    if module != "peers":
        command += ["--minutes", str(BEGIN * seconds / 60)]
        command += ["--again"] if again else []
        command += ["--cases", *cases] if cases else []
    status, output = shell.run(command)
    print("\n".join(tail(output)), flush=True)
    took = round(time.monotonic() - start, 1)
    if status:
        path = timing.folder() / f"{name}.json"
        found = json.loads(path.read_text()) if path.exists() else {"what": stage}
        why = "out of time" if status == LATE else f"exit status {status}"
        found |= {"complete": False, "failed": why, "output": tail(output, 60)}
        timing.write(name, found, device)
    print(f"{stage}: {'done' if status == 0 else 'failed'}, {took} s", flush=True)
    # out of time: what it had is written, and it continues next time
    return status in (0, LATE)


def results_name(stage: str, device: torch.device) -> str:
    """Returns the name of the stage's results file without .json."""
    kind = BENCHMARKS[stage][1] if stage in BENCHMARKS else stage
    return f"{timing.short_name(device)}-{kind}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="+", choices=(*ORDER, "tune", "all"))
    parser.add_argument("--again", action="store_true", help="repeat what is there already")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="per stage")
    parser.add_argument(
        "--case", action="append", default=[], dest="cases", metavar="WORD",
        help="only cases of a benchmark whose name contains this; repeatable",
    )  # fmt: skip
    parser.add_argument("--until", type=float, help="a time.time() before which all of them end")
    options = parser.parse_args()
    processes.end_with_children()
    stages = ORDER if "all" in options.stages else options.stages
    os.environ["OUT"] = str(timing.folder().resolve())  # the same folder for all processes
    device = timing.default_device()
    failed = []
    for stage in stages:
        left = float("inf") if options.until is None else options.until - time.time()
        seconds = max(1.0, min(options.seconds, left))
        if not run(stage, device, options.again, seconds, options.cases):
            failed.append(stage)
    if failed:
        print("failed:", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
