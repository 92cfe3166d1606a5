"""Hostile adapters, templates, images and tables: one named error each, soon, in little memory."""

import json
import os
import random
import resource
import shutil
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.hard import processes
from tests.hard.hostile_adapters import ADAPTERS, BACKBONES, TEMPLATES
from tests.hard.hostile_base import Maker, make_base
from tests.hard.hostile_images import IMAGES
from tests.hard.hostile_tables import TABLES
from tests.hard.trial import Outcome, Trial

SECONDS = 5.0  # of computing
GIGABYTE = 1 << 30
_GIVEN = 30.0  # seconds until one that hangs is killed
_GROUPS = (ADAPTERS, TEMPLATES, IMAGES, TABLES, BACKBONES)


def run(count: int, seed: int, folder: Path) -> Outcome:
    """`count` hostile files of all makers in turn, each met by `dive` in a process of its own."""
    outcome = Outcome()
    (folder / "base").mkdir()
    base = make_base(folder / "base")
    processes.run(["--help"], folder / "warm.log")  # the server has imported all by then
    longest = most = 0.0
    for number, maker in zip(range(count), _in_turn(), strict=False):
        place = folder / str(number)
        place.mkdir()
        arguments = maker(random.Random(f"{seed}/{number}"), place, base)
        seconds, megabytes, faults = _meet(arguments, place)
        outcome.tried += 1
        longest, most = max(longest, seconds), max(most, megabytes)
        for fault in faults:
            outcome.faults.append(f"{number} ({maker.__name__}, seed {seed}): {fault}")
        if not faults:
            shutil.rmtree(place)
    outcome.figures = {"longest s": round(longest, 1), "most MB": round(most)}
    return outcome


def _in_turn() -> list[Maker]:
    """The makers, one of each group after the other, many times."""
    turns = 1000
    return [group[turn % len(group)] for turn in range(turns) for group in _GROUPS]


def _meet(arguments: list[str], place: Path) -> tuple[float, float, list[str]]:
    """(seconds of computing, megabytes over what the process began with, what is wrong).

    Of computing, as the machine may have other things to do; what waits is killed by the clock.
    """
    log, used = place / "log", place / "used.json"
    process = processes.context().Process(target=_tried, args=(arguments, str(log), str(used)))
    process.start()
    assert isinstance(process, ForkServerProcess)
    try:
        status = processes.finish(process, _GIVEN)
    except TimeoutError:
        return _GIVEN, 0.0, [f"no end within {_GIVEN:.0f} s: dive {' '.join(arguments)}"]
    said = log.read_text(errors="replace") if log.exists() else ""
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    try:
        seconds, bytes_ = json.loads(used.read_text())
    except (OSError, ValueError):
        seconds, bytes_ = 0.0, 0
    faults = []
    if status != 1 or len(lines) != 1 or "Traceback" in said:
        faults.append(f"exit status {status}, said {said[-600:]!r}")
    elif len(lines[0]) > 2000:
        faults.append(f"an error of {len(lines[0]):,} letters: {lines[0][:200]}")
    elif "weights_only" in lines[0]:
        faults.append(f"advice to run what was refused: {lines[0][:400]}")
    if (place / "ran").exists():
        faults.append("code in the file was run")
    if seconds > SECONDS:
        faults.append(f"took {seconds:.1f} s: {said[-300:]!r}")
    if bytes_ > GIGABYTE:
        faults.append(f"took {bytes_ / 1e6:,.0f} MB: {said[-300:]!r}")
    if faults:
        faults[-1] += f" (dive {' '.join(arguments)})"
    return seconds, bytes_ / 1e6, faults


def _tried(arguments: list[str], log: str, used: str) -> None:
    held = _resident()
    # what takes more than the trial allows is stopped before the machine is
    with open("/proc/self/statm", encoding="ascii") as file:
        most = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + 6 * GIGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        processes._command(arguments, log, None)
    finally:
        sys.stdout.flush()
        own, children = (
            resource.getrusage(who).ru_maxrss * 1024
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        with open(used, "w", encoding="ascii") as file:
            json.dump([sum(os.times()[:4]), max(own - held, children)], file)


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


TRIAL = Trial("hostile", run, full=100, short=5)
