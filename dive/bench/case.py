"""What every operator's cases have in common."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from dive.bench.rates import Rates
from dive.bench.results import Found

# how far an operator may be off the reference, as a share of the result's norm
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Setup:
    """Where a case runs."""

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
        """Of the time that is left, beside the other cases' shares."""
        ...

    def seconds(self, setup: Setup) -> float:
        """The least that this takes, about: what is not begun with less left."""
        ...

    def smaller(self) -> Self | None:
        """The same with less to compute, for where there is no time for this; None at the least."""
        ...

    def run(self, setup: Setup, until: float) -> Iterator[Found]:
        """Rows as they come; no round begins after `until` (of time.monotonic())."""
        ...


def reseed(number: int, device: torch.device) -> None:
    """Random numbers of the CPU and of the current device begin anew; those of others go on."""
    # torch.manual_seed would seed every GPU, which nothing here puts back
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    """The distance of two tensors as a share of the norm of the second, which is not 0."""
    if got.shape != want.shape:
        return float("inf")
    wide = want.double()
    return float((got.double() - wide).norm() / wide.norm())
