"""The first minutes on a GPU: does it run, is it correct, how far from the goals, a profile.

    python -m benchmarks.first_contact [SET | PART ...] [--seconds 465] [--limit PART=SECONDS ...]

Every part is its own process with a time limit, so that a crash or a hang only costs that part; in
a part of steps (benchmarks/first/) it only costs that step, and the others run in a new process.
What does not pass `smoke` is not timed. Everything is packed into $OUT/<set>.tar.gz (by default of
build/first-contact) after each part, and a table follows. The last part may use all the time left.
DIVE_BENCH_TOY=1 rehearses it on a CPU.
"""

import argparse
import json
import os
import signal
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.processes import LATE, bounded, end_with_children, python

ROOT = Path(__file__).parents[1]
TOY = os.environ.get("DIVE_BENCH_TOY") == "1"
SECONDS = 465  # for a call of 480
_LEAST = 8  # seconds: no process is started with less left
_IMPORTS = 25  # seconds, at most, until a process begins to measure
Result = dict[str, Any]


class Part(NamedTuple):
    """One process. steps: a module of benchmarks/first; else stage: one of benchmarks/stages.py.

    needs: steps of smoke that must have passed, if smoke was run.
    """

    seconds: int
    steps: str = ""
    stage: str = ""
    needs: tuple[str, ...] = ()


RIGHT = ("machine", "steer", "steer, norm preserving", "cross entropy", "cross entropy, teacher")
HERE = RIGHT[:1]  # each step of a part has its further needs
STEERS, LOSES = RIGHT[:3], (RIGHT[0], *RIGHT[3:])
GROUPS = ("machine", "steer, several adapters")
DECODES = ("machine", "dive._C", "decode, batch 1", "decode, batch 8")
PARTS = {
    "smoke": Part(75, steps="benchmarks.first.smoke"),
    "tests": Part(125, stage="test"),
    "loss": Part(45, steps="benchmarks.first.loss", needs=HERE),
    "steer": Part(60, steps="benchmarks.first.steer", needs=HERE),
    "decode": Part(110, steps="benchmarks.first.decode", needs=HERE),
    "ab": Part(50, needs=HERE),  # benchmarks/suspicions.py
    "sanitize": Part(200, stage="sanitize", needs=HERE),
    "peers": Part(60, stage="peers", needs=LOSES),
    "loss-file": Part(140, stage="loss", needs=LOSES),
    "steer-file": Part(100, stage="steer", needs=STEERS),
    "steer-grouped-file": Part(40, stage="steer-grouped", needs=GROUPS),
    "decode-file": Part(220, stage="decode", needs=DECODES),
    "distill-file": Part(380, stage="distill", needs=RIGHT),
    "tune-file": Part(120, stage="tune", needs=RIGHT),
}
SETS = {
    "first": ("smoke", "tests", "loss", "steer", "decode", "ab"),
    "sanitizer": ("smoke", "sanitize"),
    "published": ("smoke", "peers", "loss-file", "steer-file", "steer-grouped-file", "decode-file"),
    "distill": ("smoke", "distill-file"),
}
SUSPICIONS = "benchmarks/suspicions.py"


class Contact:
    """A run of some parts. work: the folder that is packed into `archive`."""

    def __init__(
        self,
        name: str,
        work: Path,
        archive: Path,
        seconds: float,
        cases: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.name, self.work, self.archive, self.cases = name, work, archive, cases
        self.start = time.monotonic()
        self.end = self.start + seconds
        self.results: dict[str, Result] = {}
        (self.work / "results").mkdir()
        self.environment = environment(self.work)

    def part(self, name: str, part: Part, seconds: float) -> None:
        """Runs a part and packs the results."""
        begun, left = time.monotonic(), self.end - time.monotonic()
        passed = self.passed()
        bad = [] if passed is None else [one for one in part.needs if one not in passed]
        # the table entry of a run that is stopped within this part
        self.results[name] = {"state": "failed", "summary": "it was stopped"}
        if left < _LEAST:
            found: Result = {"state": "not run", "summary": "no time was left", "steps": {}}
        elif bad:
            found = {"state": "not run", "summary": f"did not pass: {', '.join(bad)}"}
        elif part.steps:
            found = self.of_steps(name, part.steps, min(seconds, left), passed)
        elif part.stage:
            found = self.of_stage(name, part.stage, min(seconds, left))
        else:
            found = self.suspicions(name, min(seconds, left))
        found["seconds"] = round(time.monotonic() - begun, 1)
        self.results[name] = found
        print(next(row(name, found)).splitlines()[0], flush=True)
        self.pack()

    def passed(self) -> list[str] | None:
        """Returns the steps of smoke that passed; None if it was not run."""
        if "smoke" not in self.results:
            return None
        steps = self.results["smoke"]["steps"]
        return [name for name, one in steps.items() if one["state"] == "passed"]

    def run(self, name: str, command: list[str], seconds: float) -> int:
        log = self.work / f"{name}.log"
        return bounded(command, seconds, log, cwd=ROOT, env=self.environment)

    def of_steps(self, name: str, module: str, seconds: float, passed: list[str] | None) -> Result:
        """Runs the steps of a part; after a crash within a step another process runs the rest."""
        lines, end = self.work / f"{name}.jsonl", time.monotonic() + seconds
        lines.touch()
        status = 0
        while True:
            begun, steps, before = read_steps(lines)
            done = [step for step, one in steps.items() if one]
            more = ["--done", *done, *(() if passed is None else ("--passed", *passed))]
            command = python("-u", "-m", "benchmarks.first.steps", module, str(lines), *more)
            status = self.run(name, command, end - time.monotonic())
            begun, steps, after = read_steps(lines)
            if begun is not None:  # and not finished
                why, log = ended(status), (self.work / f"{name}.log").read_text(errors="replace")
                if "Timeout (" in log.rpartition(f"-- {begun['step']}\n")[2]:  # of faulthandler
                    why = f"took longer than {begun['bound']} s; its stack is in {name}.log"
                line = {"step": begun["step"], "state": "failed", "summary": why}
                with lines.open("a") as file:
                    file.write("\n" + json.dumps(line) + "\n")
                begun, steps, after = read_steps(lines)
            over = all(steps.values()) or end - time.monotonic() < _LEAST
            if status in (0, LATE) or after == before or over:
                break
        if not steps:
            said = f"{ended(status)}: {' '.join(self.said(name, 1))}"
            return {"state": "failed", "summary": said, "steps": {}}
        late = end - time.monotonic() < _LEAST
        for step, one in steps.items():
            if not one:
                why = "no time was left" if late else f"not reached: {ended(status)}"
                steps[step] = {"state": "not run", "summary": why}
        states = [one["state"] for one in steps.values()]
        state = next((s for s in ("failed", "not run") if s in states), "passed")
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        return {"state": state, "summary": counts, "steps": steps}

    def of_stage(self, name: str, stage: str, seconds: float) -> Result:
        """Runs a stage, which ends by itself before its limit, in time to write its results."""
        chosen = [word for part, word in self.cases if part == name]
        more = [option for word in chosen for option in ("--case", word)]
        # by wall-clock time, as its imports take part of its time
        bound = ["--seconds", str(seconds), "--until", str(time.time() + seconds - _LEAST)]
        before = self.files()
        status = self.run(name, python("-m", "benchmarks.stages", stage, *bound, *more), seconds)
        new = [path for path, written in self.files().items() if before.get(path) != written]
        if not new or status == LATE:  # also if it was complete before, which it prints
            said = f"{ended(status)}: {' '.join(self.said(name, 1))}"
            return {"state": "failed" if status else "passed", "summary": said}
        found = json.loads(new[0].read_text(encoding="utf-8"))
        state = found.get("state") or ("passed" if found["complete"] else "not complete")
        counts = ("passed", "failed", "error", "skipped")
        said = [f"{found[key]} {key}" for key in counts if isinstance(found.get(key), int)]
        said += [str(found[key]) for key in ("reason", "failed") if isinstance(found.get(key), str)]
        said += [f"{len(found['cases'])} cases"] if "cases" in found else []
        said += [f"{len(found['left'])} left"] if found.get("left") else []
        summary = f"{', '.join(said)}; {new[0].name} {' '.join(found.get('failing', []))}"
        return {"state": "failed" if status else state, "summary": summary}

    def files(self) -> dict[Path, int]:
        """Returns the results files of the stages, and when they were written."""
        found = (self.work / "results").glob("*.json")
        return {path: path.stat().st_mtime_ns for path in found}

    def suspicions(self, name: str, seconds: float) -> Result:
        if not (ROOT / SUSPICIONS).exists():
            return {"state": "not run", "summary": f"{SUSPICIONS} is not there"}
        bound = str(max(_LEAST, seconds - _IMPORTS))
        lines = self.work / f"{name}.jsonl"
        command = python("-m", "benchmarks.suspicions", "--seconds", bound, "--out", str(lines))
        status = self.run(name, command, seconds)
        count = len(lines.read_text().splitlines()) if lines.exists() else 0
        table = [line for line in self.said(name, 60) if not line.startswith("{")][-24:]
        summary = "\n".join([f"{ended(status)}, {count} of them", *table])
        return {"state": "failed" if status else "passed", "summary": summary}

    def said(self, name: str, count: int) -> list[str]:
        """Returns the last non-empty lines of a part's log."""
        text = (self.work / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return [line[:200] for line in text.splitlines() if line.strip()][-count:]

    def pack(self) -> None:
        """Packs everything, atomically."""
        summary = {"set": self.name, "seconds": round(time.monotonic() - self.start, 1)}
        text = json.dumps({**summary, "parts": self.results}, indent=1)
        (self.work / "summary.json").write_text(text + "\n", encoding="utf-8")
        self.archive.parent.mkdir(parents=True, exist_ok=True)
        part = self.archive.with_name(f".{self.archive.name}.part")
        with tarfile.open(part, "w:gz", compresslevel=6) as packed:
            for path in sorted(self.work.rglob("*")):
                if path.is_file() and path.relative_to(self.work).parts[0] not in _NOT_PACKED:
                    packed.add(path, f"{self.name}/{path.relative_to(self.work)}")
        os.replace(part, self.archive)

    def table(self) -> str:
        """Returns state and summary of every part and step."""
        took = time.monotonic() - self.start
        lines = [f"== {self.name}: {took:.0f} s, {self.archive}"]
        for name, found in self.results.items():
            lines += row(name, found)
        return "\n".join(lines)


_NOT_PACKED = ("home", "wheels")


def environment(work: Path) -> dict[str, str]:
    """Returns the environment of every part; without a writable home, caches are in `work`."""
    found = dict(os.environ)
    found["OUT"] = str(work / "results")
    found |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    home = found.get("HOME", "")
    if not home or not os.access(home, os.W_OK):
        found["HOME"] = str(work / "home")
        Path(found["HOME"]).mkdir()
    paths = [str(ROOT), *unpacked_wheels(work)]
    found["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [found.get("PYTHONPATH")])])
    if TOY:
        found |= {"DIVE_REHEARSE_GPU": "1", "TRITON_INTERPRET": "1"}
        found.setdefault("DIVE_GPU_TESTS", "tests/gpu -k 'fresh or two_runs'")
    return found


def unpacked_wheels(work: Path) -> list[str]:
    """Unpacks the pure Python wheels of wheels/, without pip or changes to the machine."""
    folder = work / "wheels"
    for path in sorted((ROOT / "wheels").glob("*-none-any.whl")):
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(folder)
    return [str(folder)] if folder.exists() else []


def read_steps(lines: Path) -> tuple[Result | None, dict[str, Result], int]:
    """Returns the step that has begun without a result, results by step, how many ended."""
    begun: Result | None = None
    steps: dict[str, Result] = {}
    for text in lines.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # truncated
            continue
        if "steps" in line:
            steps |= {name: {} for name in line["steps"] if name not in steps}
        elif line["state"] == "begun":
            begun = line
        else:
            begun, steps[line["step"]] = None, line
    return begun, steps, sum(map(bool, steps.values()))


def ended(status: int) -> str:
    """Returns an exit status in words."""
    if status == LATE:
        return "out of time"
    if status > 128:
        with_name = {int(one): one.name for one in signal.Signals}
        return with_name.get(status - 128, f"signal {status - 128}")
    return f"exit status {status}"


def row(name: str, found: Result) -> Iterator[str]:
    """Yields the lines of one part and its steps."""
    yield f"{name:<26} {found['state']:<11} {found.get('seconds', 0):>6} {short(found)}"
    for step, one in found.get("steps", {}).items():
        yield f"  {step:<24} {one['state']:<11} {one.get('seconds', ''):>6} {short(one)}"


def short(found: Result) -> str:
    text = str(found.get("summary", ""))
    return text if "\n" in text else text[:240]


def of_part(text: str, option: str) -> tuple[str, str]:
    """Parses PART=VALUE."""
    part, found, value = text.partition("=")
    if part not in PARTS or not found or not value:
        raise SystemExit(f"{option} {text}: want PART=VALUE, a part of {', '.join(PARTS)}")
    return part, value


def limits(given: list[str]) -> dict[str, int]:
    """Parses PART=SECONDS; returns seconds by part."""
    found = dict(of_part(text, "--limit") for text in given)
    for part, value in found.items():
        if not value.isdecimal():
            raise SystemExit(f"--limit {part}={value}: want a number of seconds")
    return {part: int(value) for part, value in found.items()}


def asked_for(words: list[str]) -> list[str]:
    """Returns the parts of names of parts and sets."""
    unknown = [word for word in words if word not in SETS and word not in PARTS]
    if unknown:
        raise SystemExit(f"{' '.join(unknown)}: want some of {', '.join([*SETS, *PARTS])}")
    return list(dict.fromkeys(part for word in words for part in SETS.get(word, (word,))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="SET|PART", help=", ".join([*SETS, *PARTS]))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of them")
    parser.add_argument("--limit", action="append", default=[], metavar="PART=SECONDS")
    parser.add_argument(
        "--case", action="append", default=[], metavar="PART=WORD",
        help="of a part -file: only cases whose name contains this",
    )  # fmt: skip
    options = parser.parse_args()
    words = options.parts or ["first"]
    parts, name = asked_for(words), "-".join(words)
    bounds = {one: part.seconds for one, part in PARTS.items()} | limits(options.limit)
    cases = [of_part(text, "--case") for text in options.case]
    out = Path(os.environ.get("OUT") or ROOT / "build" / "first-contact").resolve()
    end_with_children()
    with tempfile.TemporaryDirectory(prefix="dive-first-contact-") as folder:
        archive = out / f"{name}.tar.gz"
        contact = Contact(name, Path(folder), archive, options.seconds, cases)
        try:
            for part in parts:
                # the last part may use the time that the others left
                bound = options.seconds if part == parts[-1] else bounds[part]
                contact.part(part, PARTS[part], bound)
        finally:  # also if this process is terminated
            contact.pack()
            print(contact.table(), flush=True)
    states = {one["state"] for one in contact.results.values()}
    return 1 if states & {"failed", "errors"} else 0


if __name__ == "__main__":
    sys.exit(main())
