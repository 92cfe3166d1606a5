"""What this device can do, as the floors take it: products, copies and reads."""

from typing import NamedTuple

import torch
from torch import Tensor

from dive.bench.timing import Call, interval, stopwatches, turns

# by kind of device: what is read to measure the rate of reading, in bytes
READ_BYTES = {"cuda": 1 << 32, "cpu": 1 << 29}
_TOY_BYTES = 1 << 20


class Rates(NamedTuple):
    """Measured in the run that they are quoted in."""

    products: float  # FLOP/s of a square matrix product in the run's dtype
    copies: float  # bytes/s, read and written together
    reads: float  # bytes/s by the best of `reads`
    read_by: str


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


def read_buffer(device: torch.device, toy: bool) -> Tensor:
    """What `reads` reads: larger than a cache, and no more than an eighth of the GPU."""
    size = _TOY_BYTES if toy else READ_BYTES[device.type]
    if device.type == "cuda" and not toy:
        size = min(size, torch.cuda.mem_get_info(device)[0] // 8 // (1 << 20) * (1 << 20))
    return torch.ones(size // 4, device=device)


def measure(device: torch.device, dtype: torch.dtype, toy: bool) -> Rates:
    """Takes about a second."""
    side = 64 if toy else 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    memory = read_buffer(device, toy)
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
                 size / seconds[best], best)  # fmt: skip
