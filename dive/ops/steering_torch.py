"""The PyTorch path of `dive::steer` and of its backward pass, on every device.

The operands of the products are rounded to the stream's dtype, everything else is float32 (float64
for float64).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns `x.to(dtype)`, at a tenth of its cost where x has that dtype already."""
    return x if x.dtype == dtype else x.to(dtype)


def _widened(h: Tensor) -> Tensor:
    """[T, D] contiguous in the dtype of summation."""
    x = h if h.dim() == 2 else h.reshape(-1, h.shape[-1])
    x = x.contiguous()
    return x if x.dtype == torch.float64 else x.float()


def operand(parameter: Tensor, dtype: torch.dtype, wide: torch.dtype) -> Tensor:
    """Returns a factor of a product: rounded to the stream's dtype, held in that of summation."""
    return cast(cast(parameter, dtype), wide)


def activate(pre: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return F.silu(pre)
    if activation == "gelu":
        return F.gelu(pre)
    return torch.tanh(pre) if activation == "tanh" else pre


def _activation_gradient(grad: Tensor, pre: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return torch.ops.aten.silu_backward(grad, pre)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, pre)
    return grad * (1 - torch.tanh(pre).square()) if activation == "tanh" else grad


def measured(
    x: Tensor,
    factor: Tensor,
    down: Tensor,
    down_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns |x| and 1 / RMS(x), both [T, 1], and down u + down_bias [T, R], of wide states x.

    factor, down: the operands of the product, as `operand` returns them; factor is x, rounded.
    """
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    rstd = over_rms(norm, x.shape[1], eps)
    pre = torch.mm(factor, down.t())
    return norm, rstd, torch.addcmul(cast(down_bias, x.dtype), pre, rstd)


def over_rms(norm: Tensor, width: int, eps: float) -> Tensor:
    """Returns 1 / RMS of states of this norm and width."""
    return torch.addcmul(norm.new_full((), eps), norm, norm, value=1 / max(width, 1)).rsqrt_()


def edited(
    x: Tensor,
    pre: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
    activation: str,
    out: Tensor | None = None,
) -> Tensor:
    """Returns x + scale * (up phi(pre) + static), [T, D], with the scale on the small tensors.

    up: an operand of the product, as `operand` returns it. out: where to write it; may be x.
    """
    wide = pre.dtype
    mix = operand(activate(pre, activation), dtype, wide)
    result = torch.add(x, cast(static, wide) * scale, out=out)
    return result.addmm_(mix * scale, up.t())


def kept(norm: Tensor, moved: Tensor) -> Tensor:
    """Returns the factors [T, 1] that scale rows to their former norm, 1 for a row of zeros."""
    new = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    # without an edit both norms are the same number and their ratio is exactly 1
    return torch.where(new > 0, norm / new, 1.0)


def forward(
    h: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    activation: str,
    norm_preserving: bool,
    eps: float,
    compute_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x = _widened(h)
    wide = x.dtype
    norm, rstd, pre = measured(x, x, operand(down, h.dtype, wide), down_bias, eps)
    wide_up = operand(up, h.dtype, wide)
    out = edited(x, pre, wide_up, static, cast(scale, wide), h.dtype, activation)
    if norm_preserving:
        out.mul_(kept(norm, out))
    out = cast(out, h.dtype)
    out = out if h.dim() == 2 else out.view_as(h)
    if mask is not None:
        out = torch.where(mask[..., None], out, h)
    if not compute_grad:
        pre, rstd = pre.new_empty(0, 0), rstd.new_empty(0)
    return out, pre, rstd.view(-1)


def backward(
    grad: Tensor,
    h: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    pre: Tensor,
    rstd: Tensor,
    activation: str,
    norm_preserving: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, g = _widened(h), _widened(grad)
    wide, dtype = x.dtype, h.dtype
    passed = g  # the part of the gradient that reaches h directly
    if mask is not None:  # masked rows take no part, whatever they hold
        keep = mask.reshape(-1, 1)
        x, g = torch.where(keep, x, 0.0), torch.where(keep, g, 0.0)
        pre, rstd = torch.where(keep, pre, 0.0), torch.where(keep[:, 0], rstd, 0.0)
    s = cast(scale, wide)
    wide_up, wide_down = operand(up, dtype, wide), operand(down, dtype, wide)
    through_norm = None
    if norm_preserving:
        out = edited(x, pre, wide_up, static, s, dtype, activation)
        old = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        new = torch.linalg.vector_norm(out, dim=1, keepdim=True)
        safe = torch.where(new > 0, new, 1.0)
        unit = out / safe
        along = (g * unit).sum(1, keepdim=True)
        # d|x|/dx = x / |x|, and 0 at 0; a result of 0 was not rescaled
        through_norm = torch.where((new > 0) & (old > 0), along / old, 0.0) * x
        g = torch.where(new > 0, (old / safe) * torch.addcmul(g, along, unit, value=-1), g)
        passed = g if mask is None else torch.where(keep, g, passed)

    mix = operand(activate(pre, activation), dtype, wide)
    at_mix = torch.mm(g, wide_up)  # without the scale
    total = g.sum(0)
    grad_scale = (at_mix * mix).sum() + total @ cast(static, wide)
    grad_up = torch.mm(g.t(), mix) * s
    at_pre = _activation_gradient(at_mix * s, pre, activation)
    grad_bias = at_pre.sum(0)
    scaled = at_pre * rstd[:, None]
    grad_down = torch.mm(scaled.t(), x)
    # u = x rstd: the part along x comes from the [T, R] tensors alone, as (down u) = pre - bias
    along_x = (at_pre * (pre - cast(down_bias, wide))).sum(1)
    along_x = along_x * rstd.square() / max(x.shape[1], 1)
    grad_h = torch.addcmul(passed, along_x[:, None], x, value=-1).addmm_(scaled, wide_down)
    if through_norm is not None:
        grad_h += through_norm
    grad_h = cast(grad_h, dtype)
    return (
        grad_h if h.dim() == 2 else grad_h.view_as(h),
        cast(grad_down, down.dtype),
        cast(grad_bias, down_bias.dtype),
        cast(grad_up, up.dtype),
        cast(total * s, static.dtype),
        cast(grad_scale, scale.dtype),
    )
