"""The loss at the size of its goal: its share of the products' floor, and a profile."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.first.look import compared, gpu, kernels
from benchmarks.first.smoke import DISTILLING, LOSS
from benchmarks.first.steps import Step
from benchmarks.timing import TOY
from dive import ops
from dive.bench.cross_entropy import floors
from dive.bench.peers import Problem, distilling

BOTH = "forward+backward"
TOKENS, WIDTH, VOCABULARY, LIVE = (48, 16, 128, 16) if TOY else (4096, 4096, 128256, 4096)
MIB = 1 << 20
CHUNKS = (128, 256, 512, 1024, 2048)


def problem(tokens: int, live: int, distils: bool = False) -> Problem:
    dtype = torch.float32 if TOY else torch.bfloat16
    return Problem.random(tokens, WIDTH, VOCABULARY, live, dtype, gpu(), distils)


def call(p: Problem, mib: int | None) -> Callable[[], object]:
    """Returns a forward and backward; mib: of the chunks, None for the default."""
    given = (p.hidden, p.head, p.targets, p.weights)
    more: dict[str, Any] = {"rows": p.rows, **distilling(p)}
    if mib is not None:
        more["chunk_bytes"] = mib * MIB

    def run() -> None:
        ops.decisive_cross_entropy(*given, **more).loss.backward()
        p.hidden.grad = None

    return run


def chunks(tokens: int, live: int, distils: bool = False) -> dict[str, Any]:
    """Compares every chunk size with the floor and the default."""
    p = problem(tokens, live, distils)
    ways = {"floor": floors(p)[BOTH], "default": call(p, None)}
    ways |= {f"{mib} MiB": call(p, mib) for mib in CHUNKS}
    return compared(ways, 9, "floor")


def split() -> dict[str, Any]:
    return kernels(call(problem(TOKENS, LIVE), None))


STEPS = {
    "all live": Step(partial(chunks, TOKENS, LIVE), 25, (LOSS,)),
    "all live, KD": Step(partial(chunks, TOKENS, LIVE, True), 15, (DISTILLING,)),
    # 8 x (576 image + 64 prompt + 160 report)
    "20% live": Step(
        partial(chunks, TOKENS if TOY else 6400, LIVE // 3 if TOY else 1280), 15, (LOSS,)
    ),
    "its kernels": Step(split, 15, (LOSS,)),
}
