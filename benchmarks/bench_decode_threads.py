"""Threads of the CPU engine on a machine with busy processes: wall-clock time of a step.

    python -m benchmarks.bench_decode_threads                  results/cpu-engine-threads.json

One sequence, 64 tokens in the cache, random weights, bfloat16. The neighbours are Python loops on
one core, the last that this process may use; the engine's threads may run on any. The result is
"ratio", the time with a number of threads over that of one thread with the same neighbours: without
any it shows the effect of another thread, with some it must stay below 1.2. Medians of turns.
Other work of the machine shows in `load` and in the figures: where there is much, as root
`echo -15 > /proc/self/autogroup` in the shell gives this and its neighbours a higher priority. The
figures of results/ were measured with it.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks import timing
from benchmarks.timing import TOY
from dive import _C
from dive.bench.decoders import build
from dive.decode.session import DecodeSession

CACHED = 64
NEIGHBOURS = (0, 1, 2)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Runs a number of processes that are always busy, on one core."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        for process in processes:
            os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
        time.sleep(0.0 if TOY else 0.5)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def fill_cache(engine: Any, config: Any, count: int) -> None:
    """Reserves a slot of CACHED tokens and `count` more; memory of any other content may be NaN."""
    width = config.hidden_size // config.num_attention_heads
    states = torch.randn(config.num_key_value_heads, CACHED, width, dtype=torch.bfloat16)
    engine.reserve(1, CACHED + count)
    for layer in range(config.num_hidden_layers):
        engine.copy_cache(layer, 0, 0, states, states)


def steps(engine: Any, count: int) -> int:
    """Runs `count` steps; returns the last token."""
    engine.start_slot(0, CACHED, CACHED)
    slot, token = torch.zeros(1, dtype=torch.long), torch.full((1,), 7)
    for _ in range(count):
        engine.step(token, slot, token)
    return int(token)


def measure(shape: str, beside: int, rounds: int, count: int) -> list[dict[str, Any]]:
    session = DecodeSession(build(shape, torch.bfloat16, timing.CPU, toy=TOY))
    assert session.engine_choice().engine == "dive._C", session.engine_choice()
    assert session.binding.spec is not None
    engines = {}
    for threads in sorted({1, 2, _C.physical_cores()}):
        engines[threads] = _C.Engine(session.binding.spec.engine_arguments(CACHED + count))
        engines[threads].threads = threads
        fill_cache(engines[threads], session.model.config, count)
    with neighbours(beside):
        load = os.getloadavg()[0]
        taken = timing.interleaved(
            {str(n): partial(steps, engine, count) for n, engine in engines.items()}, rounds
        )
    records = []
    for name, seconds in taken.items():
        record: dict[str, Any] = {"shape": shape, "neighbours": beside, "threads": int(name)}
        record["ms"] = round(seconds["wall"] / count * 1e3, 3)
        record["ratio"] = round(seconds["wall"] / taken["1"]["wall"], 3)
        records.append(record | {"load": round(load, 1)})
        print(records[-1], flush=True)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=2 if TOY else 15)
    rounds = parser.parse_args().rounds
    if _C.physical_cores() < 2:
        raise SystemExit("this process may run on one core only: there are no threads to compare")
    torch.set_num_threads(1)
    records = []
    for shape, count in (("512x12", 30), ("1536x16", 6)):
        for beside in NEIGHBOURS:
            records += measure(shape, beside, rounds, 2 if TOY else count)
    print(timing.write("cpu-engine-threads", {"rounds": rounds, "rows": records}))


if __name__ == "__main__":
    main()
