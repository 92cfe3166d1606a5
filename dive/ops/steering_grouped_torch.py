"""The PyTorch path of `dive::steer_grouped_`, on every device: one adapter after the other.

Which adapters the tokens have is read on the host. That is cheap on a CPU; elsewhere it waits for
the device, and cannot be captured in a graph.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from dive.ops.steering_torch import activate, cast, edited, kept, measured, operand, over_rms

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
    if least < most and hidden.numel() <= _PART:
        _steer_sorted(
            hidden, residual, own, down, down_bias, up, static, scale, activation,
            norm_preserving, eps,
        )  # fmt: skip
        return
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


def _steer_sorted(
    hidden: Tensor,
    residual: Tensor | None,
    own: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    activation: str,
    norm_preserving: bool,
    eps: float,
) -> None:
    """Steers few tokens of several adapters, as of a step of decoding, where calls cost more than
    numbers: sorted by adapter, so that only the products are computed adapter by adapter."""
    dtype = hidden.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    which, order = own.sort()
    ids, counts = (one.tolist() for one in which.unique_consecutive(return_counts=True))
    ends = [*itertools.accumulate(counts)]
    groups = [
        (index, slice(end - count, end))
        for index, count, end in zip(ids, counts, ends, strict=True)
        if 0 <= index < down.shape[0]
    ]
    if not groups:
        return
    first, last = groups[0][1].start, groups[-1][1].stop
    which, order = which[first:last], order[first:last]
    groups = [(index, slice(at.start - first, at.stop - first)) for index, at in groups]
    old = cast(hidden[order], wide)
    x = factor = old
    if residual is not None:
        x = old + residual[order]
        factor = operand(x, dtype, wide)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    pre = x.new_empty(len(order), down.shape[1])
    for index, at in groups:
        torch.mm(factor[at], operand(down[index], dtype, wide).t(), out=pre[at])
    rstd = over_rms(norm, x.shape[1], eps)
    pre = torch.addcmul(cast(down_bias, wide)[which], pre, rstd)
    mix = operand(activate(pre, activation), dtype, wide)
    base = x if norm_preserving else old
    new = torch.empty_like(base)
    for index, at in groups:
        times = cast(scale[index], wide)
        moved = torch.add(base[at], cast(static[index], wide) * times, out=new[at])
        moved.addmm_(mix[at] * times, operand(up[index], dtype, wide).t())
    if norm_preserving:
        new.mul_(kept(norm, new))
        new = new if residual is None else new.sub_(x).add_(old)
    hidden.index_copy_(0, order, cast(new, dtype))


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
