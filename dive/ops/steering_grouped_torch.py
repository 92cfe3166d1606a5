"""The PyTorch path of `dive::steer_grouped_`, on every device: one adapter after the other.

Which adapters the tokens have is read on the host. That is cheap on a CPU; elsewhere it waits for
the device, and cannot be captured in a graph.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dive.ops.steering_torch import cast, edited, kept, measured, operand

# numbers of hidden at a time: large tensors leave the caches, and may be mapped anew at each call
_PART = 2**18


def steer(
    hidden: Tensor,
    residual: Tensor | None,
    adapters: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    activation: str,
    norm_preserving: bool,
    eps: float,
) -> None:
    tokens, count = hidden.shape[0], down.shape[0]
    if not hidden.numel():
        return
    own = adapters[:tokens]
    least, most = (int(bound) for bound in own.aminmax())
    dtype = hidden.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    part = max(_PART // hidden.shape[1], 1)
    for which in range(max(least, 0), min(most, count - 1) + 1):
        chosen = _chosen(own, which, least == most)
        if chosen is None:
            continue
        change = _Change(
            operand(down[which], dtype, wide),
            cast(down_bias[which], wide),
            operand(up[which], dtype, wide),
            cast(static[which], wide),
            cast(scale[which], wide),
            activation,
            norm_preserving,
            eps,
        )
        if isinstance(chosen, slice):
            for first in range(chosen.start, chosen.stop, part):
                several = slice(first, min(first + part, chosen.stop))
                change.apply(hidden[several], None if residual is None else residual[several])
            continue
        for index in chosen.split(part):
            gathered = hidden[index]
            change.apply(gathered, None if residual is None else residual[index])
            hidden.index_copy_(0, index, gathered)


def _chosen(own: Tensor, which: int, only: bool) -> slice | Tensor | None:
    """Returns the tokens of an adapter: as a slice where they follow one another, as those of a
    request do, else as their indices; None if there are none. only: all tokens have it."""
    if only:
        return slice(0, own.shape[0])
    index = (own == which).nonzero()[:, 0]
    if not index.numel():
        return None
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first + 1 == index.numel() else index


class _Change(NamedTuple):
    """An adapter and its options: factors rounded, all in the dtype of summation."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    static: Tensor
    scale: Tensor
    activation: str
    norm_preserving: bool
    eps: float

    def apply(self, hidden: Tensor, residual: Tensor | None) -> None:
        """Steers tokens that all have this adapter; hidden [n, D] is overwritten."""
        dtype, wide = hidden.dtype, self.down.dtype
        old = cast(hidden, wide)
        x = factor = old
        if residual is not None:
            x = old + residual
            factor = operand(x, dtype, wide)
        norm, _, pre = measured(x, factor, self.down, self.down_bias, self.eps)
        edit = (pre, self.up, self.static, self.scale, dtype, self.activation)
        if self.norm_preserving:
            moved = edited(x, *edit)
            moved.mul_(kept(norm, moved))
            new = moved if residual is None else moved.sub_(x).add_(old)
        else:  # where hidden has the dtype of summation, in it
            new = edited(old, *edit, out=old)
        if new is not hidden:
            hidden.copy_(new)
