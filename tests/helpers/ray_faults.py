"""Engines that fail on purpose, for actors of Ray: they are opened where `faults.txt` says so.

The file lies in the backbone's folder, where nothing else reads it. Its lines:

    await 2             an engine is open when so many are, so that all actors take part
    slow 0.2            every report takes so many seconds more
    kill study-03       its process kills itself when the study's film is opened, every time
    once study-03       the same, the first time
    refuse              the engine cannot be opened
    die                 its process ends while the engine is opened
    broken              writing raises an exception that is no DiveError
    adapter FOLDER      another adapter lies under the same path
"""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from dive.cli import engines
from dive.errors import DiveError
from dive.generation.resume import WatchedStudy

REAL = engines.open_engine, engines.read_inputs


def faults(request):
    path = Path(request.backbone) / "faults.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def note(request, word):
    """A line more in `noted.txt` beside it."""
    with open(Path(request.backbone) / "noted.txt", "a") as file:
        file.write(f"{word}\n")


def noted(folder):
    path = Path(folder) / "noted.txt"
    return path.read_text().split() if path.exists() else []


class Killing(WatchedStudy):
    """A study whose film kills the process that opens it."""

    def load_images(self):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def read_inputs(request):
    for word, *more in faults(request):
        if word == "adapter":
            request = replace(request, adapter=more[0])
    return REAL[1](request)


def open_engine(request, inputs):
    note(request, "opened")
    for word, *more in faults(request):
        if word == "refuse":
            raise DiveError("the engine is closed today")
        if word == "await":
            while noted(request.backbone).count("opened") < int(more[0]):
                time.sleep(0.05)
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
    real = REAL[0](request, inputs)

    def write(studies, skipped):
        given, pause = list(studies), 0.0
        for word, *more in faults(request):
            if word == "slow":
                pause = float(more[0])
            if word == "broken":
                raise ZeroDivisionError("zyxsecret")
            if word in ("kill", "once"):
                given = [killing(request, one, word) if one.id == more[0] else one for one in given]
        for report in real(given, skipped):
            time.sleep(pause)
            yield report

    write.close = lambda: note(request, "closed")
    return write


def killing(request, study, word):
    marker = Path(request.backbone) / f"killed-{study.id}"
    if word == "once" and marker.exists():
        return study
    marker.touch()
    note(request, f"kills-{study.id}")
    made = Killing(**{n: getattr(study, n) for n in ("id", "images", "patient", "indication")})
    return made
