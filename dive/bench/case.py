"""The interface of the cases of every operator."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from dive.bench.rates import Rates
from dive.bench.results import Found

# the largest distance of an operator from the reference, as a share of the result's norm
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Setup:
    """The conditions under which a case runs."""

    device: torch.device
    dtype: torch.dtype
    toy: bool
    rates: Rates

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.dtype]


class Case(Protocol):
    """One problem of an operator, checked and then timed by every way to compute it."""

    @property
    def operator(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def share(self) -> float:
        """The case's share of the time left, relative to those of other cases."""
        ...

    def seconds(self, setup: Setup) -> float:
        """Estimates the least time of the case; with less left it is not begun."""
        ...

    def smaller(self) -> Self | None:
        """Returns a smaller case to run where time is short, or None for the smallest."""
        ...

    def run(self, setup: Setup, until: float) -> Iterator[Found]:
        """Yields records as they are measured; no round begins after `until` (time.monotonic())."""
        ...


def reseed(number: int, device: torch.device) -> None:
    """Seeds the generators of the CPU and of the current device, and no others."""
    # torch.manual_seed would seed every GPU, and nothing here would restore those
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    """Returns the distance of two tensors as a share of the norm of the second, which is not 0."""
    if got.shape != want.shape:
        return float("inf")
    wide = want.double()
    return float((got.double() - wide).norm() / wide.norm())
