"""The stages of benchmarks/gpu.sh: a process, a bound of time and a JSON for each.

A stage whose results file is complete, of this commit and of this device is skipped, but for
`build`, which leaves something on the machine; one that ran out of time goes on where it stopped.
What was not run says so and why; it is never called clean.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import timing
from benchmarks.timing import TOY

ROOT = Path(__file__).parents[1]
LIMIT = 8 * 60  # seconds a stage
BEGIN = 5.5  # minutes after which a benchmark begins no further case
WHEELS = ROOT / "wheels"
# small tests of every kernel: under a sanitizer each takes many times as long. None captures a
# graph, as every allocation is a cudaMalloc there, which a capture refuses
SANITIZED = os.environ.get(
    "DIVE_SANITIZE_TESTS",
    "tests/gpu -k 'rows_of_a_batch or two_runs or (float32_logits and llama) or activations "
    "or fresh or no_host_sync'",
)
REFUSALS = (
    "device not supported", "not supported on", "unsupported", "failed to initialize",
    "unable to", "insufficient permission", "permission denied", "no attachable process",
    "before first instrumented api call", "debugger",
)  # fmt: skip

Command = list[str]


class Shell:
    """Runs commands of one stage within its time."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.end = time.monotonic() + limit

    def run(self, command: Command, **environment: str) -> tuple[int, str]:
        """Exit status (124: out of time) and what it printed."""
        print("$", *command, flush=True)
        left = max(1.0, self.end - time.monotonic())
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=left,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            output = late.stdout or b""
            return 124, output.decode(errors="replace") if isinstance(output, bytes) else output
        except OSError as error:
            return 127, str(error)
        return done.returncode, done.stdout


def tail(output: str, lines: int = 30) -> list[str]:
    """The last lines, of those that say something."""
    return [line[:300] for line in output.splitlines() if line.strip()][-lines:]


def python(*arguments: str) -> Command:
    return [sys.executable, *arguments]


def build(shell: Shell) -> dict[str, Any]:
    """Wheels that lie in wheels/, then the checkout with its extension."""
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
    # at toy size the package is described but not built: that takes a minute
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
    """tests/gpu."""
    command = python("-m", "pytest", "-v", "-rs", "--tb=short", "-p", "no:cacheprovider")
    status, output = shell.run([*command, "tests/gpu"])
    return outcome(status, output)


def outcome(status: int, output: str) -> dict[str, Any]:
    """Of a verbose run of pytest, finished or cut off."""
    found = re.findall(r"^(\S+::\S.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", output, re.M)
    counts = {word: [t for t, w in found if w == word] for _, word in found}
    result: dict[str, Any] = {word.lower(): len(tests) for word, tests in counts.items()}
    bad = counts.get("FAILED", []) + counts.get("ERROR", [])
    if not counts.get("PASSED") and not bad and status in (0, 5):
        result["state"] = "not run"
        reasons = re.findall(r"^SKIPPED \[\d+\] (.*)$", output, re.M)
        result["reason"] = "; ".join(reasons)[:400] or "no test was collected"
    elif status == 124:
        result["state"] = "out of time"
    else:
        result["state"] = "passed" if status == 0 else "failed"
    if result["state"] not in ("passed", "not run"):
        result |= {"failing": bad, "output": tail(output, 60)}
    return result


def sanitize(shell: Shell) -> dict[str, Any]:
    """compute-sanitizer over a part of tests/gpu ($DIVE_SANITIZE_TESTS)."""
    import shlex

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
    """What compute-sanitizer found. Clean needs its own summary and a test that passed."""
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
    if status == 124:
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
# module and what its results file is called after the device
BENCHMARKS = {
    "peers": ("peers", "peers", []),
    "loss": ("bench_cross_entropy", "cross-entropy", []),
    "steer": ("bench_steer", "steer", []),
    "decode": ("bench_decode", "decode-pairs", ["--pairs"]),
    "distill": ("bench_distill", "distill-run", []),
    # the shape that the benchmarks have most of; at toy size there is but one
    "tune": ("tune", "tune", [] if TOY else ["--dtype=bfloat16", "--width=4096", "--rank=16"]),
}
ORDER = ("build", "test", "peers", "loss", "steer", "decode", "distill", "sanitize")  # of `all`


def run(stage: str, device: torch.device, again: bool) -> bool:
    """One stage; whether nothing failed in it."""
    name = f"{timing.short_name(device)}-{BENCHMARKS[stage][1] if stage in BENCHMARKS else stage}"
    # what is built lies on a machine, and a file that came from another one builds nothing here
    before = None if stage == "build" or again else timing.earlier(name, device)
    if before is not None and before.get("complete"):
        print(f"{stage}: {name}.json is of this commit and complete; --again repeats it")
        return True
    start, shell = time.monotonic(), Shell()
    if stage in OWN:
        result = OWN[stage](shell)
        result["complete"] = result["state"] in ("passed", "clean")
        good = result["state"] in ("passed", "clean", "not run")
        head = {"what": f"{stage}: {(OWN[stage].__doc__ or '').splitlines()[0]}"}
        seconds = round(time.monotonic() - start, 1)
        path = timing.write(name, {**head, **result, "seconds": seconds}, device)
        print(f"{stage}: {result['state']}, {seconds} s; {path}", flush=True)
        return good
    module, _, more = BENCHMARKS[stage]
    command = python("-m", f"benchmarks.{module}", "--device", device.type, *more)
    if module != "peers":
        command += ["--minutes", str(BEGIN)]
    status, output = shell.run([*command, *(["--again"] if again else [])])
    print("\n".join(tail(output)), flush=True)
    seconds = round(time.monotonic() - start, 1)
    if status:
        path = timing.folder() / f"{name}.json"
        found = json.loads(path.read_text()) if path.exists() else {"what": stage}
        why = "out of time" if status == 124 else f"exit status {status}"
        found |= {"complete": False, "failed": why, "output": tail(output, 60)}
        timing.write(name, found, device)
    print(f"{stage}: {'done' if status == 0 else 'failed'}, {seconds} s", flush=True)
    # cut off by the clock it has written what it had, and goes on next time
    return status in (0, 124)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="+", choices=(*ORDER, "tune", "all"))
    parser.add_argument("--again", action="store_true", help="repeat what is there already")
    options = parser.parse_args()
    stages = ORDER if "all" in options.stages else options.stages
    os.environ["OUT"] = str(timing.folder().resolve())  # one folder for all processes
    device = timing.default_device()
    failed = [stage for stage in stages if not run(stage, device, options.again)]
    if failed:
        print("failed:", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
