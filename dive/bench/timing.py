"""Interleaved timing, and confidence intervals of medians."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Call = Callable[[], object]
T = TypeVar("T")

LEAST_ROUNDS = 3
_FLUSH_BYTES = 256 << 20  # more than any GPU's last-level cache


class Interval(NamedTuple):
    """A median with its 95% interval by order statistics, in the unit of the values."""

    median: float
    low: float
    high: float


def interval(values: list[float]) -> Interval:
    """Returns the median with a 95% interval; for few values the smallest and the largest."""
    ordered, n = sorted(values), len(values)
    half = 0.98 * n**0.5
    low, high = max(0, int(n / 2 - half)), min(n - 1, int(n / 2 + half))
    return Interval(statistics.median(ordered), ordered[low], ordered[high])


def turns(
    measures: Mapping[str, Callable[[], T]],
    rounds: int,
    *,
    until: float | None = None,
    least: int = LEAST_ROUNDS,
) -> dict[str, list[T]]:
    """Runs the measures round by round, so that noise affects all of them alike.

    The order is reversed from round to round, and the first round is a warm-up. After `least`
    rounds, none begins that would end after `until` (of time.monotonic()).
    """
    taken: dict[str, list[T]] = {name: [] for name in measures}
    names = list(measures)
    begun = time.monotonic()
    for turn in range(rounds + 1):
        took, begun = time.monotonic() - begun, time.monotonic()
        if turn > least and until is not None and begun + took > until:
            break
        for name in names if turn % 2 == 0 else reversed(names):
            value = measures[name]()
            if turn:
                taken[name].append(value)
    return taken


def cpu_seconds(function: Call) -> tuple[float, float]:
    """Returns the seconds of one call: wall time, and CPU time of all threads of the process."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def wall_seconds(function: Call, device: torch.device) -> float:
    """Returns the wall time of one call; on a GPU until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def gpu_seconds(function: Call, repeats: int) -> float:
    """Returns the seconds per call of `repeats` calls between two events on the stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats / 1e3


def cold_gpu_seconds(function: Call, repeats: int, flush: Tensor) -> float:
    """Returns the seconds per call with cold caches: `flush` is written before each, untimed."""
    events = [
        [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # start and end
        for _ in range(repeats)
    ]
    torch.cuda.synchronize()
    for start, end in events:
        flush.zero_()
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return statistics.mean(start.elapsed_time(end) for start, end in events) / 1e3


def repeats_for(function: Call, most: int) -> int:
    """Returns the number of calls in about 5 ms on the GPU, so that the first launch is little."""
    function()
    return min(most, max(1, round(5e-3 / gpu_seconds(function, 1))))


def stopwatches(
    functions: Mapping[str, Call], device: torch.device
) -> dict[str, Callable[[], float]]:
    """Returns a measure for each function: seconds per call by wall time, on a GPU by events."""
    if device.type != "cuda":
        return {
            name: lambda function=function: wall_seconds(function, device)  # type: ignore[misc]
            for name, function in functions.items()
        }
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

    def measure(function: Call) -> Callable[[], float]:
        repeats = repeats_for(function, 10)
        return lambda: cold_gpu_seconds(function, repeats, flush)

    return {name: measure(function) for name, function in functions.items()}
