"""Steps of a part of benchmarks/first_contact.py that go wrong in every way, for its test."""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.first.steps import NotHere, Step


def good():
    return {"summary": "all is well", "seconds": [1, 2], "step": 3}


def raises():
    raise ValueError("an operator\nthat fails")


def is_not_here():
    raise NotHere("no such card")


def segfaults():
    ctypes.string_at(0)


def hangs():
    # a child of its own that outlives it, as a worker would
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(os.environ["FAULTS"]).write_text(str(child.pid))
    time.sleep(600)


STEPS = {
    "good": Step(good),
    "raises": Step(raises),
    "not here": Step(is_not_here),
    "hangs": Step(hangs, 0.5),
    "segfaults": Step(segfaults),
    "needs": Step(good, needs=("steer", "decode")),
    "after": Step(good),
}
if os.environ.get("FAULTS_AT_ONCE"):
    time.sleep(600)
