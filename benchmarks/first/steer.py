"""Steering at the size of its goal, by calls from the host and by replays of a graph.

A call takes some 60 us on the host, which a replay does not. `narrow` parameters are in the
stream's dtype beforehand, so that the call has no cast.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.first.look import Calls, compared, gpu, kernels
from benchmarks.first.smoke import STEER
from benchmarks.first.steps import NotHere, Step, one_line
from benchmarks.timing import TOY, graphed, version
from dive import ops
from dive.bench.steer import PASSES, inputs

TOKENS, WIDTH, RANK = (16, 64, 4) if TOY else (16384, 4096, 16)
TUNING = 25  # seconds


def given(narrow: bool, gradients: bool) -> list[Tensor]:
    found = [x.detach() for x in inputs(TOKENS, WIDTH, RANK, torch.bfloat16, gpu())]
    found = [x.bfloat16() if narrow else x for x in found]
    return [x.requires_grad_(gradients) for x in found]


def forward(narrow: bool = False) -> Callable[[], object]:
    args = given(narrow, False)
    return lambda: ops.steer(*args)


def both(narrow: bool = False) -> Callable[[], object]:
    args = given(narrow, True)
    upstream = torch.randn_like(args[0])
    return lambda: torch.autograd.grad(ops.steer(*args), args, upstream)


def beside_a_copy(make: Callable[[bool], Callable[[], object]], mode: str) -> dict[str, Any]:
    """Times calls and replays, with float32 and with narrow parameters."""
    h = given(False, False)[0]
    target = torch.empty_like(h)
    ways: Calls = {"copy": lambda: target.copy_(h)}
    ways |= {"called": make(False), "narrow": make(True)}
    refused = {}
    for name in ("called", "narrow"):
        try:
            ways[f"{name}, replayed"] = graphed(ways[name], gpu())
        except Exception as error:
            refused[f"{name}, replayed"] = one_line(error)
    found = compared(ways, 15, "copy", PASSES[mode] / 2)
    return found | {"not_run": found["not_run"] | refused}


def tuning() -> dict[str, Any]:
    """Tunes the forward for a short time."""
    from benchmarks import tune

    # its interpreter reads scalars from arrays in a way that is an error from NumPy 2.5 on
    if TOY and (version("triton") or "") < "3.7" and (version("numpy") or "") >= "2.5":
        raise NotHere("Triton's interpreter does not run with this NumPy")
    size = (3, 64) if TOY else (RANK, WIDTH)
    found = tune.tune("steer_forward", torch.bfloat16, *size, rounds=3, seconds=TUNING)
    times = {name: round(1e6 * one, 1) for name, one in found["seconds"].items()}
    said = ", ".join(f"{one} us {name}" for name, one in sorted(times.items(), key=_second)[:3])
    return {"summary": f"{said}; default {times['default']} us", **found}


def _second(item: tuple[str, float]) -> float:
    return item[1]


def forwards() -> dict[str, Any]:
    return beside_a_copy(forward, "forward")


def with_gradients() -> dict[str, Any]:
    return beside_a_copy(both, "forward+backward")


def split() -> dict[str, Any]:
    return kernels(both())


STEPS = {
    "forward": Step(forwards, 25, (STEER,)),
    "forward+backward": Step(with_gradients, 15, (STEER,)),
    "its kernels": Step(split, 15, (STEER,)),
    "rows of the table": Step(tuning, 2 * TUNING, (STEER,)),
}
