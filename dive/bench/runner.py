"""One run: what the device can do, then case by case, until the time is up."""

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from dive.bench import cross_entropy, decode, steer
from dive.bench.case import TOLERANCES, Case, Here
from dive.bench.deadline import Deadline, OutOfTime
from dive.bench.machine import facts
from dive.bench.rates import Rates, measure
from dive.bench.results import NotRun, Results, reason_of, significant
from dive.errors import DiveError

_MODULES: dict[str, Any] = {
    cross_entropy.OPERATOR: cross_entropy,
    steer.OPERATOR: steer,
    decode.OPERATOR: decode,
}
OPERATORS = tuple(_MODULES)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCES}
_UP = "the time was up"


def run(
    operators: Sequence[str] = OPERATORS,
    *,
    device: str = "auto",
    dtype: str = "auto",
    seconds: float = 60.0,
    threads: int | None = None,
    toy: bool = False,
    started: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Results:
    """Times the operators on a device; nothing is left out without a word.

    operators: of OPERATORS. device: auto (a GPU where there is one), cpu, cuda, cuda:1 ...
    dtype: auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16.
    threads: on a CPU; None takes as many as torch does, less what the machine's load leaves busy,
    since threads that wait for each other's turn on a core measure that alone.
    seconds: of the whole run, from `started` (of time.monotonic()) on. toy: small sizes, whose
    times mean nothing. say: is told what is under way.
    DiveError on another operator, device, dtype, number of threads or time.
    """
    import dive

    started = time.monotonic() if started is None else started
    if not operators:
        operators = OPERATORS
    for name in operators:
        if name not in OPERATORS:
            raise DiveError(f"bench: operator is {name!r}, want one of {', '.join(OPERATORS)}")
    if not 0 < seconds < math.inf:
        raise DiveError(f"bench: seconds is {seconds}, want a finite number above 0")
    where = _device(device)
    kind = _dtype(dtype, where)
    if threads is not None and threads < 1:
        raise DiveError(f"bench: threads is {threads}, want 1 or more")
    deadline = Deadline(seconds, started)
    with _own_state(where, threads):
        results = Results(
            {
                "dive": dive.__version__,
                "machine": facts(where),
                "device": str(where),
                "dtype": str(kind).removeprefix("torch."),
                "threads": torch.get_num_threads() if where.type == "cpu" else None,
                "toy": toy,
                "seconds": seconds,
            }
        )
        _run_all(list(dict.fromkeys(operators)), where, kind, deadline, results, say)
    results.head["seconds_taken"] = round(time.monotonic() - started, 1)
    return results


@contextmanager
def _own_state(device: torch.device, threads: int | None) -> Iterator[None]:
    """What is torch's own is here as in a new process, and afterwards as the caller had it."""
    on_gpu = device.type == "cuda"
    before, dtype = torch.get_num_threads(), torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        stack.callback(torch.set_default_dtype, dtype)
        if on_gpu:
            stack.enter_context(torch.cuda.device(device))
        # the cases seed the generators, for everyone to be timed on the same numbers
        stack.enter_context(torch.random.fork_rng([torch.cuda.current_device()] if on_gpu else []))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        torch.set_default_dtype(torch.float32)
        if not on_gpu:
            torch.set_num_threads(threads or idle_threads())
        yield


def idle_threads() -> int:
    """Torch's threads, less the cores that the last minute's load keeps busy; at least 1."""
    busy = round(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
    return max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) - busy))


def _run_all(
    operators: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    deadline: Deadline,
    results: Results,
    say: Callable[[str], None],
) -> None:
    toy = results.head["toy"]
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    cases = list(_in_turns([_MODULES[name].cases(device, toy, free) for name in operators]))
    say("what the device can do")
    try:
        with deadline.bound():
            rates = measure(device, dtype, toy)
    except OutOfTime:
        for case in cases:
            results.add(NotRun(case.operator, case.name, "all", _UP))
        return
    except Exception as error:
        raise DiveError(f"bench: {device} does not work: {reason_of(error)}") from error
    results.rates = _told(rates)
    here = Here(device, dtype, toy, rates)
    for at, case in enumerate(cases):
        say(f"{case.operator}: {case.name}")
        _run(case, here, deadline, sum(one.share for one in cases[at:]), results)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _run(case: Case, here: Here, deadline: Deadline, shares: float, results: Results) -> None:
    """One case in its part of the time that is left."""
    left, least = deadline.left, case.seconds(here)
    if left < least:
        reason = f"it takes about {least:.0f} s, and {max(left, 0):.0f} s are left"
        results.add(NotRun(case.operator, case.name, "all", reason))
        return
    # in time to go on with the next case, and to end by itself before it is broken off
    until = time.monotonic() + min(max(left * case.share / shares, least), 0.85 * left)
    try:
        with deadline.bound():
            for found in case.run(here, until):
                results.add(found)
    except OutOfTime:
        results.add(NotRun(case.operator, case.name, "the rest", _UP))
    except Exception as error:
        results.add(NotRun(case.operator, case.name, "the rest", reason_of(error)))


def _in_turns(lists: Sequence[Sequence[Case]]) -> Iterator[Case]:
    """The first case of each operator, then the second of each ..."""
    for at in range(max(map(len, lists))):
        for one in lists:
            yield from one[at : at + 1]


def _told(rates: Rates) -> dict[str, Any]:
    return {
        "products_gflop_s": significant(rates.products / 1e9),
        "copies_gb_s": significant(rates.copies / 1e9),
        "reads_gb_s": significant(rates.reads / 1e9),
        "read_by": rates.read_by,
    }


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise DiveError(f"bench: device is {name!r}, want auto, cpu, cuda, cuda:1 ...")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not (device.index or 0) < count:
            raise DiveError(f"bench: device is {name!r}, and there are {count} CUDA devices here")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise DiveError(f"bench: dtype is {name!r}, want auto, {', '.join(DTYPES)}")
    return DTYPES[name]
