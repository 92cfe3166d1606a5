"""Steering of the residual stream against the same in PyTorch, eager and compiled.

The floor is the least that must be read and written, at the rate of a copy in the same turns: h and
h' forward, and h and both gradients backward.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dive import ops, reference
from dive.bench import observe
from dive.bench.case import Setup, off, reseed
from dive.bench.rates import copies, fastest
from dive.bench.request import STEER as OPERATOR
from dive.bench.results import Found, Setting, Unmeasured, Wrong, reason_of, records_of
from dive.bench.timing import Call, stopwatches, turns

PASSES = {"forward": 2, "forward+backward": 5}  # over [T, D]
NAMES = ("h", "down", "down_bias", "up", "static", "scale")
_ROUNDS = 40


def inputs(
    tokens: int, width: int, rank: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Returns h [T, D] and the parameters in float32, all of which require a gradient."""
    reseed(0, device)
    h = torch.randn(tokens, width, device=device).to(dtype)
    shapes = ((rank, width), (rank,), (width, rank), (width,))
    parameters = [torch.randn(shape, device=device) for shape in shapes]
    parameters[0] /= width**0.5
    return [x.requires_grad_() for x in (h, *parameters, torch.tensor(0.5, device=device))]


def copy(h: Tensor) -> tuple[str, Call]:
    """Returns the name of the fastest way to copy the stream here, and a call of it."""
    source, target = h.detach(), torch.empty_like(h, requires_grad=False)
    ways = copies(target, source)
    name = fastest(ways, h.device)
    return name, ways[name]


def run(function: Callable[..., Tensor], given: list[Tensor], upstream: Tensor, mode: str) -> Call:
    """Returns a call of the function, with its gradients in mode forward+backward."""
    if mode == "forward":
        return lambda: function(*given)
    return lambda: torch.autograd.grad(function(*given), given, upstream)


@dataclass(frozen=True)
class Steer:
    """Steering of [T, D] at one rank. compiled: also against the reference under torch.compile."""

    tokens: int
    width: int
    rank: int
    compiled: bool = False
    share: float = 1.0

    operator = OPERATOR

    @property
    def name(self) -> str:
        more = ", beside torch.compile" if self.compiled else ""
        return f"{self.tokens} tokens, D {self.width}, rank {self.rank}{more}"

    def seconds(self, setup: Setup) -> float:
        # the reference makes about ten passes in float32 for each of the floor's
        size = 7 * self.tokens * self.width * 40
        compiles = 12 if self.compiled and not setup.toy else 0  # two graphs, and their backward
        return 6 * size / setup.rates.copies + compiles

    def smaller(self) -> "Steer | None":
        # with torch.compile most of the time is compilation, whatever the size
        tokens = self.tokens // 4
        return None if self.compiled or tokens < 128 else replace(self, tokens=tokens)

    def run(self, setup: Setup, until: float) -> Iterator[Found]:
        missing = partial(Unmeasured, OPERATOR, self.name)
        try:
            given = inputs(self.tokens, self.width, self.rank, setup.dtype, setup.device)
            want = reference.steer(*given)
            # the result itself: a sum over tokens with random signs would show little
            upstream = want.detach()
            gradients = torch.autograd.grad(want, given, upstream)
        except Exception as error:
            yield missing("all", f"the reference fails, to compare with: {reason_of(error)}")
            return
        try:
            wrong = _difference(given, want, gradients, upstream, setup.tolerance)
            modes = {mode: run(_dive, given, upstream, mode) for mode in PASSES}
            seen = {mode: observe.operator(one, setup.device) for mode, one in modes.items()}
        except torch.OutOfMemoryError as error:
            yield missing("all", reason_of(error))
            return
        except Exception as error:
            wrong = f"it fails: {reason_of(error)}"
        if wrong:
            yield Wrong(OPERATOR, self.name, wrong)
            return
        others: dict[str, Callable[..., Tensor]] = {"reference": reference.steer}
        ran = {"reference": "dive.reference", "reference, compiled": "inductor"}
        if self.compiled:
            if setup.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
                yield missing("reference, compiled", "no C++ compiler is on PATH")
                return
            torch._dynamo.reset()  # the compiler limits how often it compiles a function
            backend = "eager" if setup.toy else "inductor"
            others["reference, compiled"] = torch.compile(
                reference.steer, backend=backend, dynamic=False
            )
            if setup.toy:
                ran["reference, compiled"] = "dynamo"
        size = self.tokens * self.width * setup.dtype.itemsize
        for at, (mode, passes) in enumerate(PASSES.items()):
            copied_by, copying = copy(given[0])
            calls = {"floor": copying, "dive": modes[mode]}
            for name, function in others.items():
                one = run(function, given, upstream, mode)
                try:
                    one()  # compiles
                except Exception as error:
                    yield missing(f"{name} ({mode})", reason_of(error))
                else:
                    calls[name] = one
            if self.compiled and len(calls) == 3:
                continue  # the case without it has the rest
            part = (until - time.monotonic()) / (len(PASSES) - at)
            watches = stopwatches(calls, setup.device)
            seconds = turns(watches, _ROUNDS, until=time.monotonic() + part)
            seconds["floor"] = [passes / 2 * one for one in seconds["floor"]]
            ran |= {
                "dive": seen[mode],
                "floor": f"{passes} passes at the rate of a copy ({copied_by})",
            }
            beside = {name: "dive" for name in others}
            setting = Setting(OPERATOR, self.name, mode)
            yield from records_of(setting, seconds, ran, beside, passes * size / 1e9, "GB/s")


def _dive(*given: Tensor) -> Tensor:
    return ops.steer(*given)


def _difference(
    given: list[Tensor],
    want: Tensor,
    gradients: tuple[Tensor, ...],
    upstream: Tensor,
    most: float,
) -> str:
    """Returns in words where result or gradients are too far off, or an empty string."""
    got = ops.steer(*given)
    named = {"result": (got.detach(), want.detach())}
    for name, one, other in zip(
        NAMES, torch.autograd.grad(got, given, upstream), gradients, strict=True
    ):
        named[f"gradient for {name}"] = one, other
    for name, (one, other) in named.items():
        distance = off(one, other)
        if not distance <= most:
            return f"its {name} is {distance:.2%} off dive.reference's, want {most:.1%} at most"
    return ""


def cases(device: torch.device, toy: bool, free: int) -> list[Steer]:
    """Returns the cases by priority. free: bytes of device memory."""
    if toy:
        return [Steer(16, 64, 4), Steer(16, 64, 4, compiled=True)]
    if device.type == "cpu":
        sizes = (2048, 1024, 16)
    else:
        sizes = (16384 if free > 12 << 30 else 2048, 4096, 16)
    return [Steer(*sizes), Steer(*sizes, compiled=True)]
