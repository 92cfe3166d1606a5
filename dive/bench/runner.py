"""A run: the rates of the device, then case by case, until the time is up."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from dive.bench import cross_entropy, decode, request, steer
from dive.bench.case import Case, Setup
from dive.bench.deadline import Deadline, OutOfTime, bound
from dive.bench.machine import facts
from dive.bench.rates import Rates, measure
from dive.bench.results import Results, Unmeasured, reason_of, significant
from dive.errors import DiveError

_MODULES: dict[str, Any] = {
    cross_entropy.OPERATOR: cross_entropy,
    steer.OPERATOR: steer,
    decode.OPERATOR: decode,
}
DTYPES = {name: getattr(torch, name) for name in request.DTYPES}
_UP = "the time was up"
# an operator's first case is rather tried in vain than skipped by an estimate
_SLACK = 1.5
_SHARE_UP = "its share of the time was up"


def run(
    operators: Sequence[str] = request.OPERATORS,
    *,
    device: str = "auto",
    dtype: str = "auto",
    seconds: float = 60.0,
    threads: int | None = None,
    toy: bool = False,
    started: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Results:
    """Times the operators on a device, and records the reason of whatever is left out.

    operators: of OPERATORS, each with a share of the time; unused time goes to the next.
    device: auto (a GPU where there is one), cpu, cuda, cuda:1 ...
    dtype: auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16.
    threads: on a CPU; None is the number that torch uses less the cores that the machine's load
    keeps busy, since threads that share a core only measure their waiting.
    seconds: of the whole run, from `started` (of time.monotonic()) on. toy: small sizes, whose
    times mean nothing. say: is called with what is in progress.
    DiveError for another operator, device, dtype, number of threads or time.
    """
    import dive

    started = time.monotonic() if started is None else started
    request.check(operators, device, dtype, seconds, threads)
    names = request.operators_of(operators)
    where = _device(device)
    kind = _dtype(dtype, where)
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
        _run_all(names, where, kind, deadline, results, say)
    results.head["seconds_taken"] = round(time.monotonic() - started, 1)
    return results


@contextmanager
def _own_state(device: torch.device, threads: int | None) -> Iterator[None]:
    """Sets the global state of torch as in a new process, and restores the caller's afterwards."""
    on_gpu = device.type == "cuda"
    before, dtype = torch.get_num_threads(), torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        stack.callback(torch.set_default_dtype, dtype)
        if on_gpu:
            stack.enter_context(torch.cuda.device(device))
        # the cases seed the generators, so that all ways are timed on the same numbers
        stack.enter_context(torch.random.fork_rng([torch.cuda.current_device()] if on_gpu else []))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        torch.set_default_dtype(torch.float32)
        if not on_gpu:
            torch.set_num_threads(threads or idle_threads())
        yield


def idle_threads() -> int:
    """Returns torch's threads less the cores that the last minute's load kept busy; at least 1."""
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
    cases = [_MODULES[name].cases(device, toy, free) for name in operators]
    say("what the device can do")
    try:
        with bound(deadline.end):
            rates = measure(device, dtype, toy, deadline.left)
    except OutOfTime:
        for case in (case for turn in _turns(cases) for case in turn):
            results.add(Unmeasured(case.operator, case.name, "all", _UP))
        return
    except Exception as error:
        raise DiveError(f"bench: {device} does not work: {reason_of(error)}") from error
    results.rates = _rates_json(rates)
    setup = Setup(device, dtype, toy, rates)
    turns = list(_turns(cases))
    for number, turn in enumerate(turns):
        # cheap cases first: they leave most of their share to the others
        waiting = sorted(turn, key=lambda case: case.seconds(setup))
        behind = sum(case.share for later in turns[number + 1 :] for case in later)
        tried: set[Case] = set()
        while waiting:
            case = waiting.pop(0)
            say(f"{case.operator}: {case.name}")
            beside = sum(one.share for one in waiting)
            # an operator's first case uses no other's share; after those, first come first served
            most = case.share / (case.share + beside) if number == 0 else 1.0
            least_wanted = case.share / (case.share + beside + behind)
            slack = _SLACK if number == 0 else 1.0
            may_wait = bool(waiting) and case not in tried
            tried.add(case)
            again = _run_case(case, setup, deadline, most, least_wanted, slack, may_wait, results)
            if again is not None:
                waiting.append(again)
            if deadline.left > 0:  # collection takes a while, too
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    order = {name: at for at, name in enumerate(operators)}
    results.records.sort(key=lambda record: order[record.operator])  # not in the order of runs
    results.unmeasured.sort(key=lambda one: order[one.operator])


def _run_case(
    case: Case,
    setup: Setup,
    deadline: Deadline,
    most: float,
    wanted: float,
    slack: float,
    may_wait: bool,
    results: Results,
) -> Case | None:
    """Runs one case, or a smaller one, in its part of the time that is left.

    most: share of that time after which the case is interrupted. wanted: share for its rounds.
    slack: the smallest case is begun if it is estimated to take at most slack times its part.
    may_wait: whether there may be more time after other cases, if there is too little now.
    Returns the case to try after the others: the same, or a smaller one if there was no record.
    """
    left = max(deadline.left, 0.0)
    budget = most * left
    fits = case
    while fits.seconds(setup) > budget and (smaller := fits.smaller()) is not None:
        fits = smaller
    least, what = fits.seconds(setup), "are left" if most == 1 else "are its share"
    begins = least <= budget * slack
    if not begins and may_wait:
        return case
    if not begins or fits is not case:
        smallest = "" if begins or fits is case else f" ({least:.0f} s at its smallest)"
        reason = f"it takes about {case.seconds(setup):.0f} s{smallest}, and {budget:.0f} s {what}"
        if begins:
            reason += f"; in its place: {fits.name}"
        results.add(Unmeasured(case.operator, case.name, "all", reason))
    if not begins:
        return None
    # early enough for the next case, and before the case would be interrupted
    if fits.smaller() is None:  # anything else takes longer, and this is only an estimate
        budget = max(budget, min(3 * least, left / 2))
    begun, records = time.monotonic(), len(results.records)
    until = begun + min(max(left * wanted, least), 0.85 * budget)
    try:
        with bound(min(begun + budget, deadline.end)):
            for found in fits.run(setup, until):
                results.add(found)
    except OutOfTime:
        up = deadline.left <= 0 or most == 1
        results.add(Unmeasured(fits.operator, fits.name, "the rest", _UP if up else _SHARE_UP))
        return fits.smaller() if len(results.records) == records and not up else None
    except Exception as error:
        results.add(Unmeasured(fits.operator, fits.name, "the rest", reason_of(error)))
    return None


def _turns(lists: Sequence[Sequence[Case]]) -> Iterator[list[Case]]:
    """Yields the first case of each operator, then the second of each ..."""
    for at in range(max(map(len, lists))):
        yield [case for one in lists for case in one[at : at + 1]]


def _rates_json(rates: Rates) -> dict[str, Any]:
    return {
        "products_gflop_s": significant(rates.products / 1e9),
        "copies_gb_s": significant(rates.copies / 1e9),
        "reads_gb_s": significant(rates.reads / 1e9),
        "read_by": rates.read_by,
    }


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not (device.index or 0) < count:
            raise DiveError(f"bench: device is {name!r}, and there are {count} CUDA devices here")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]
