"""The rates of this device that the floors are computed from: products, copies and reads.

A floor that is too low flatters what is compared with it. On a CPU torch's own passes over memory
run from front to back and stall at every page, which costs a fifth to a half of the rate; so reads
and copies in several streams and in huge pages are tried, too, and the best one counts.
"""

import mmap
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dive.bench.timing import Call, interval, stopwatches, turns
from dive.decode import native

# device type -> bytes that are read to measure the rate of reading
READ_BYTES = {"cuda": 1 << 32, "cpu": 1 << 29}
_TOY_BYTES, _LEAST_BYTES = 1 << 20, 1 << 27
_MIB = 1 << 20
# parallel streams, and the distance of the prefetch in bytes
_READS = ((1, 1024), (4, 0), (4, 1024), (4, 2048), (8, 1024), (8, 2048))
_COPIES = ((1, 1024), (4, 0), (4, 1024))
_UNIT = 4096  # bytes: streams read and copy whole units


class Rates(NamedTuple):
    """Rates measured in the run that quotes them."""

    products: float  # FLOP/s of a square matrix product in the run's dtype
    copies: float  # bytes/s, read and written together
    reads: float  # bytes/s by the best of `reads`
    read_by: str
    read_bytes: int = 0  # of the buffer that was read; 0: READ_BYTES


def reads(memory: Tensor) -> dict[str, Call]:
    """Returns ways to read a float32 tensor of a multiple of 2048 numbers once."""
    half = memory.view(torch.bfloat16)
    matrix = half.view(-1, 4096)
    vector = torch.ones(4096, dtype=torch.bfloat16, device=memory.device)
    found: dict[str, Call] = {
        "sum": memory.sum,
        "maximum": memory.amax,
        "matrix-vector product": lambda: torch.mv(matrix, vector),
    }
    module = native.find().module
    if module is not None and _streamable(memory):
        threads = _threads(module)
        for streams, ahead in _READS:
            found[_name(streams, ahead)] = partial(
                module.read_memory, memory, streams=streams, ahead=ahead, threads=threads
            )
    return found


def copies(target: Tensor, source: Tensor) -> dict[str, Call]:
    """Returns ways to copy a contiguous tensor into another of its kind."""
    found: dict[str, Call] = {"copy": lambda: target.copy_(source)}
    module = native.find().module
    if module is not None and _streamable(target) and _streamable(source):
        threads = _threads(module)
        flat = target.view(-1).view(torch.float32), source.view(-1).view(torch.float32)
        for past_caches in (False, True):
            for streams, ahead in _COPIES:
                name = _name(streams, ahead) + (", past the caches" if past_caches else "")
                found[name] = partial(
                    module.copy_memory, *flat, streams=streams, ahead=ahead,
                    past_caches=past_caches, threads=threads,
                )  # fmt: skip
    return found


def fastest(calls: Mapping[str, Call], device: torch.device) -> str:
    """Returns the name of the fastest call, by the best of a few turns of each."""
    taken = turns(stopwatches(calls, device), 4)
    return min(taken, key=lambda name: min(taken[name]))


def read_again(read: Call, times: int) -> Call:
    """Reads once, as the step before would, and returns a call that reads `times` times.

    Data moves into the caches over several passes, and other ways have evicted it meanwhile: a
    floor reads as often as what is compared with it.
    """
    read()

    def run() -> None:
        for _ in range(times):
            read()

    return run


def _streamable(tensor: Tensor) -> bool:
    whole = tensor.nbytes > 0 and tensor.nbytes % _UNIT == 0 and tensor.data_ptr() % 64 == 0
    return whole and tensor.device.type == "cpu" and tensor.is_contiguous()


def _threads(module: object) -> int:
    """Returns the number of threads of a decode session."""
    return min(torch.get_num_threads(), module.physical_cores())  # type: ignore[attr-defined]


def _name(streams: int, ahead: int) -> str:
    many = "1 stream" if streams == 1 else f"{streams} streams"
    return f"{many}, {ahead} bytes ahead" if ahead else many


def read_buffer(device: torch.device, toy: bool, size: int = 0) -> Tensor:
    """Returns a float32 buffer for `reads` of `size` bytes, rounded up to MiB.

    By default it is larger than a cache, and at most an eighth of the GPU's memory. On a CPU it is
    in huge pages where the system has them.
    """
    size = _TOY_BYTES if toy else size or READ_BYTES[device.type]
    size = max(_MIB, -(-size // _MIB) * _MIB)
    if device.type == "cuda":
        if not toy:
            size = min(size, torch.cuda.mem_get_info(device)[0] // 8 // _MIB * _MIB)
        return torch.ones(size // 4, device=device)
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.ones(size // 4)
    memory = mmap.mmap(-1, size)
    with suppress(OSError):  # a system without huge pages uses its own size
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).fill_(1.0)


def measure(device: torch.device, dtype: torch.dtype, toy: bool, left: float = 60.0) -> Rates:
    """Measures the rates in some seconds; on a busy CPU a smaller buffer limits it to left / 10."""
    side = 64 if toy else 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    memory = read_buffer(device, toy, _fitting(left) if device.type == "cpu" and not toy else 0)
    read, copied = reads(memory), copies(*memory.chunk(2))
    functions: dict[str, Call] = {
        "products": lambda: torch.mm(a, b, out=out),
        **{f"copied by {name}": one for name, one in copied.items()},
        **read,
    }
    taken = turns(stopwatches(functions, device), 3 if device.type == "cpu" else 10)
    seconds = {name: interval(values).median for name, values in taken.items()}
    size = memory.nbytes
    best = min(read, key=lambda name: seconds[name])
    copy = min(seconds[f"copied by {name}"] for name in copied)
    return Rates(2 * side**3 / seconds["products"], size / copy, size / seconds[best], best, size)


def _fitting(left: float) -> int:
    """Returns the bytes of the buffer on a CPU, from the time of a first touch of the smallest."""
    size = READ_BYTES["cpu"]
    start = time.perf_counter()
    read_buffer(torch.device("cpu"), False, _LEAST_BYTES)
    once = time.perf_counter() - start
    while size > _LEAST_BYTES and 50 * once * size / _LEAST_BYTES > left / 10:
        size //= 2
    return size
