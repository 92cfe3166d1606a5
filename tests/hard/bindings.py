"""dive._C under calls that no careful caller makes: each ends in its result or a named exception.

Calls run in processes of their own, some thousand each, so that a crash is a signal with a seed,
and one that takes more than ten seconds is a hang. Between them sound calls are compared with what
a list, an undisturbed engine and plain PyTorch give.
"""

import os
import random
import time
from collections import Counter
from pathlib import Path

from tests.hard.processes import context
from tests.hard.trial import Outcome, Trial

HANG = 10.0
CHUNK = 2500


def run(count: int, seed: int, folder: Path) -> Outcome:
    outcome = Outcome()
    kinds: Counter[str] = Counter()
    left = [(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    workers = max(1, min(2, os.cpu_count() or 1))
    running: list[tuple] = []
    while left or running:
        while left and len(running) < workers:
            first, last = left.pop(0)
            told = folder / f"calls-{first}.txt"
            told.write_text("")
            process = context().Process(target=_calls, args=(first, last, seed, str(told)))
            process.start()
            running.append((process, first, last, told, [time.monotonic(), ""]))
        time.sleep(0.02)
        for one in list(running):
            process, first, last, told, seen = one
            ended = process.exitcode is not None
            lines = told.read_text().splitlines()
            now = lines[-1] if lines else ""
            if now != seen[1]:
                seen[:] = [time.monotonic(), now]
            hangs = time.monotonic() - seen[0] > (60.0 if not lines else HANG) and not ended
            if not ended and not hangs:
                continue
            if hangs:
                process.kill()
            process.join()
            running.remove(one)
            calls = [line.split(" ", 2) for line in lines if line.startswith("call ")]
            kinds.update(kind for _, _, kind in calls)
            outcome.tried += len(calls)
            outcome.faults += [line for line in lines if line.startswith("fault ")]
            if hangs or process.exitcode != 0:
                why = f"more than {HANG:.0f} s" if hangs else f"exit {process.exitcode}"
                at = now.removeprefix("call ")
                outcome.faults.append(f"seed {seed}, call {at}: {why}")
                if calls and int(calls[-1][1]) + 1 < last:
                    left.insert(0, (int(calls[-1][1]) + 1, last))
    outcome.figures = {"kinds": len(kinds)}
    return outcome


def _calls(first: int, last: int, seed: int, told: str) -> None:
    import faulthandler

    import torch

    from tests.hard.binding_calls import KINDS, Bench

    torch.set_num_threads(1)
    faulthandler.enable(open(told + ".crash", "w"))  # noqa: SIM115 (open to the end)
    bench = Bench()
    with open(told, "a", encoding="utf-8", buffering=1) as log:
        for number in range(first, last):
            rng = random.Random(f"{seed}/{number}")
            kind = rng.choice(list(KINDS))
            log.write(f"call {number} {kind}\n")
            wrong = bench.call(KINDS[kind], rng)
            if wrong is None and number % 25 == 0:
                wrong = bench.check()
            if wrong is not None:
                log.write(f"fault seed {seed}, call {number} {kind}: {wrong}\n")
    os._exit(0)  # without the endings of what was freed under its owner's hands


TRIAL = Trial("bindings", run, full=50_000, short=500)
