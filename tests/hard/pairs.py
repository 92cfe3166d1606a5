"""Two processes on one output, some of them killed: never a lost or mixed line."""

import random
from pathlib import Path

from tests.hard import processes
from tests.hard.outputs import REFUSED, Outputs, said
from tests.hard.trial import Outcome, Trial


def run(count: int, seed: int, folder: Path) -> Outcome:
    """Pairs of one command, started at random offsets into each other's run."""
    outputs, outcome = Outputs(folder), Outcome()
    figures = {"refused": 0, "killed": 0, "continued": 0}
    for number in range(count):
        dice = random.Random(f"{seed}/{number}")
        kind = "distill" if number % 2 else "generate"
        place = folder / f"pair-{number}"
        place.mkdir()
        out, logs = place / "in" / "out", [folder / f"pair-{number}-{n}.log" for n in (0, 1)]
        pair = []
        for log in logs:
            pair.append(processes.start(outputs.command(kind, out), log))
            pair[-1].join(dice.uniform(0, 1.5))
        killed = dice.choice((None, None, 0, 1))
        if killed is not None and processes.kill_after(pair[killed], dice.uniform(0, 1)):
            figures["killed"] += 1
        else:
            killed = None
        statuses = [processes.finish(one) for one in pair]
        faults = []
        for n, (status, log) in enumerate(zip(statuses, logs, strict=True)):
            text = log.read_text(encoding="utf-8") if log.is_file() else ""
            if status == 1:
                faults += [said(log)] if said(log) else []
                holds = kind == "distill" and killed == 1 - n and "unfinished training" in text
                if not holds and not any(words in text for words in REFUSED):
                    faults.append(f"refused without saying by whom: {text[-200:]!r}")
                figures["refused"] += "is being written by" in text
            elif status != 0 and n != killed:
                faults.append(f"exit status {status}")
        ended = statuses.count(0)
        if ended > 1 or (killed is None and ended == 0):
            faults.append(f"{ended} of two ended well ({statuses})")
        if not (out / "adapter_config.json" if kind == "distill" else out).is_file():
            figures["continued"] += 1
            last = folder / f"pair-{number}-2.log"
            status = processes.run(outputs.command(kind, out, resume=True), last)
            ended += status == 0
            faults += [f"the run after them ends with {status}: {said(last)}"] if status else []
        # who was killed behind its last rename leaves what the next run takes away
        wrong = outputs.wrong(kind, out, alone=ended > 0)
        faults += [wrong] if wrong else []
        outcome.tried += 1
        outcome.faults += [f"pair {number} of seed {seed} ({kind}): {one}" for one in faults]
    outcome.figures = {**figures}
    return outcome


TRIAL = Trial("pairs", run, full=50, short=1)
