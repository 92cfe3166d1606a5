"""The PyTorch path of `dive::steer_grouped_`, on every device: one adapter after the other.

Which adapters the tokens have is read on the host. That is cheap on a CPU; elsewhere it waits for
the device, and cannot be captured in a graph.
"""

import torch
from torch import Tensor

from dive.ops.steering_torch import cast, edited, kept, measured, operand


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
    least, most = torch.stack(own.aminmax()).tolist()
    for which in range(max(least, 0), min(most, count - 1) + 1):
        chosen = _chosen(own, which, least == most)
        if chosen is None:
            continue
        of_adapter = (down[which], down_bias[which], up[which], static[which], scale[which])
        options = (activation, norm_preserving, eps)
        beside = None if residual is None else residual[chosen]
        if isinstance(chosen, slice):
            _change(hidden[chosen], beside, *of_adapter, *options)
        else:
            gathered = hidden[chosen]
            _change(gathered, beside, *of_adapter, *options)
            hidden.index_copy_(0, chosen, gathered)


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


def _change(
    hidden: Tensor,
    residual: Tensor | None,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    activation: str,
    norm_preserving: bool,
    eps: float,
) -> None:
    """Steers tokens that have one adapter; hidden [n, D] is overwritten."""
    dtype = hidden.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    old = cast(hidden, wide)
    x = factor = old
    if residual is not None:
        x = old + residual
        factor = operand(x, dtype, wide)
    norm, _, pre = measured(x, factor, down, down_bias, dtype, eps)
    edit = (pre, up, static, cast(scale, wide), dtype, activation)
    if norm_preserving:
        moved = edited(x, *edit)
        moved.mul_(kept(norm, moved))
        new = moved if residual is None else moved.sub_(x).add_(old)
    else:  # where hidden is of the dtype of summation, in it
        new = edited(old, *edit, out=old)
    if new is not hidden:
        hidden.copy_(new)
