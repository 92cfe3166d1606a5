"""Disks that are full at any byte: one line says so, what was finished stays, and it goes on."""

import json
import random
from pathlib import Path

from tests.hard import processes
from tests.hard.outputs import Outputs, said
from tests.hard.trial import Outcome, Trial

# bytes a file may have: what a command says must fit into its own log
SIZES = {"generate": (700, 2500), "distill": (1200, 30000)}


def run(count: int, seed: int, folder: Path) -> Outcome:
    """Commands whose files may not grow beyond a size that is drawn, and then without the limit."""
    outputs, outcome = Outputs(folder), Outcome()
    full = 0
    for number in range(count):
        dice = random.Random(f"{seed}/{number}")
        kind = "distill" if number % 2 else "generate"
        out = folder / f"disk-{number}" / "out"
        out.parent.mkdir()
        least, largest = SIZES[kind]
        most = int(least * (largest / least) ** dice.random())
        first, second = (folder / f"disk-{number}-{n}.log" for n in (0, 1))
        status = processes.run(outputs.command(kind, out), first, most=most)
        faults = []
        if status == 1:
            full += 1
            faults += [said(first)] if said(first) else []
            text = first.read_text(encoding="utf-8")
            if "File too large" not in text or str(out) not in text:
                faults.append(f"neither the reason nor the place is said: {text[-300:]!r}")
            torn = _torn(out.with_name("out.partial")) if kind == "generate" else None
            faults += [torn] if torn else []
            status = processes.run(outputs.command(kind, out, resume=True), second)
        if status:
            faults.append(f"exit status {status}, with room again: {said(second)}")
        wrong = outputs.wrong(kind, out)
        faults += [wrong] if wrong else []
        outcome.tried += 1
        outcome.faults += [
            f"disk {number} of seed {seed} ({kind}, {most} bytes): {one}" for one in faults
        ]
    outcome.figures = {"full": full}
    return outcome


def _torn(partial: Path) -> str | None:
    if not partial.exists():
        return None
    *lines, rest = partial.read_bytes().split(b"\n")
    try:
        ids = [json.loads(line)["id"] for line in lines]
    except (ValueError, KeyError) as error:
        return f"a line of the unfinished file is broken: {error}"
    if rest or ids != [f"study-{n:02d}" for n in range(len(ids))]:
        return f"the unfinished file holds {ids} and {rest[:40]!r}"
    return None


TRIAL = Trial("disk", run, full=40, short=1)
