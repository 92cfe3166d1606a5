"""Runs the steps of one part of benchmarks/first_contact.py, and writes each result at once.

    python -m benchmarks.first.steps MODULE RESULTS.jsonl [--done STEP ...] [--passed STEP ...]

MODULE has STEPS. A step that raises has failed. One that takes too long ends the process, with the
stack in the log, and so does one that leaves the GPU unusable; the caller starts another process
for the remaining steps.
"""

import argparse
import faulthandler
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

LOST = 75  # exit status: the GPU is unusable in this process


class Step(NamedTuple):
    """One step. run: returns its results, of which `summary` is the line in the table.

    seconds: its time limit. needs: steps of the smoke part that must have passed.
    """

    run: Callable[[], dict[str, Any]]
    seconds: float = 30
    needs: tuple[str, ...] = ()


class NotHere(Exception):
    """A step cannot run on this machine, for the reason stated."""


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400] if text else type(error).__name__


def outcome(step: Step, passed: list[str] | None) -> dict[str, Any]:
    """Runs one step; returns state, summary and its results."""
    missing = [] if passed is None else [name for name in step.needs if name not in passed]
    if missing:
        return {"state": "not run", "summary": f"did not pass: {', '.join(missing)}"}
    try:
        found = step.run()
        return {"state": "passed", "summary": found.pop("summary", ""), "found": found}
    except NotHere as reason:
        return {"state": "not run", "summary": str(reason)}
    except Exception as error:
        traceback.print_exc()
        return {"state": "failed", "summary": one_line(error)}


def gpu_is_lost() -> bool:
    """Whether the GPU is unusable: after an illegal access every later call fails."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
        return float(torch.ones(8, device="cuda").sum()) != 8
    except Exception as error:
        print("the GPU is lost to this process:", one_line(error), flush=True)
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module")
    parser.add_argument("results", type=Path)
    parser.add_argument("--done", nargs="*", default=[])
    parser.add_argument("--passed", nargs="*", help="of the smoke part, if it was run")
    options = parser.parse_args()
    faulthandler.enable()
    steps: dict[str, Step] = importlib.import_module(options.module).STEPS
    with options.results.open("a", encoding="utf-8") as file:

        def tell(**line: Any) -> None:
            file.write(json.dumps(line, default=str) + "\n")
            file.flush()

        tell(steps=list(steps))
        for name, step in steps.items():
            if name in options.done:
                continue
            print(f"-- {name}", flush=True)
            tell(step=name, state="begun", bound=step.seconds)
            start = time.monotonic()
            faulthandler.dump_traceback_later(step.seconds, exit=True)
            found = outcome(step, options.passed)
            faulthandler.cancel_dump_traceback_later()
            tell(step=name, seconds=round(time.monotonic() - start, 1), **found)
            if found["state"] == "failed" and gpu_is_lost():
                return LOST
    return 0


if __name__ == "__main__":
    # imported as the modules of steps import it, so that exception classes are the same
    sys.exit(importlib.import_module("benchmarks.first.steps").main())
