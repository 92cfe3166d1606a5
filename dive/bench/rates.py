"""What this device can do, as the floors take it: products, copies and reads."""

import time
from typing import NamedTuple

import torch
from torch import Tensor

from dive.bench.timing import Call, interval, stopwatches, turns

# by kind of device: what is read to measure the rate of reading, in bytes
READ_BYTES = {"cuda": 1 << 32, "cpu": 1 << 29}
_TOY_BYTES, _LEAST_BYTES = 1 << 20, 1 << 27


class Rates(NamedTuple):
    """Measured in the run that they are quoted in."""

    products: float  # FLOP/s of a square matrix product in the run's dtype
    copies: float  # bytes/s, read and written together
    reads: float  # bytes/s by the best of `reads`
    read_by: str
    read_bytes: int = 0  # of the buffer that was read; 0: READ_BYTES


def reads(memory: Tensor) -> dict[str, Call]:
    """Ways to read a float32 tensor of a multiple of 2048 numbers once."""
    half = memory.view(torch.bfloat16)
    matrix = half.view(-1, 4096)
    vector = torch.ones(4096, dtype=torch.bfloat16, device=memory.device)
    return {
        "sum": memory.sum,
        "maximum": memory.amax,
        "matrix-vector product": lambda: torch.mv(matrix, vector),
    }


def read_buffer(device: torch.device, toy: bool, size: int = 0) -> Tensor:
    """What `reads` reads: larger than a cache, and no more than an eighth of the GPU."""
    size = _TOY_BYTES if toy else size or READ_BYTES[device.type]
    if device.type == "cuda" and not toy:
        size = min(size, torch.cuda.mem_get_info(device)[0] // 8 // (1 << 20) * (1 << 20))
    return torch.ones(size // 4, device=device)


def measure(device: torch.device, dtype: torch.dtype, toy: bool, left: float = 60.0) -> Rates:
    """Takes about a second, on a busy CPU more, but by a smaller buffer no tenth of `left` s."""
    side = 64 if toy else 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    memory = read_buffer(device, toy, _fitting(left) if device.type == "cpu" and not toy else 0)
    half = memory[: len(memory) // 2], memory[len(memory) // 2 :]
    functions: dict[str, Call] = {
        "products": lambda: torch.mm(a, b, out=out),
        "copies": lambda: half[0].copy_(half[1]),
        **reads(memory),
    }
    taken = turns(stopwatches(functions, device), 3 if device.type == "cpu" else 10)
    seconds = {name: interval(values).median for name, values in taken.items()}
    size = memory.nbytes
    best = min(reads(memory), key=lambda name: seconds[name])
    return Rates(2 * side**3 / seconds["products"], size / seconds["copies"],
                 size / seconds[best], best, size)  # fmt: skip


def _fitting(left: float) -> int:
    """Bytes of the buffer on a CPU, by how long a first touch of the least takes."""
    size = READ_BYTES["cpu"]
    start = time.perf_counter()
    read_buffer(torch.device("cpu"), False, _LEAST_BYTES)
    once = time.perf_counter() - start
    while size > _LEAST_BYTES and 16 * once * size / _LEAST_BYTES > left / 10:
        size //= 2
    return size
