"""`dive::steer`: state-conditioned steering of the residual stream, with its backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dive.errors import DiveError
from dive.ops.library import (
    FLOATS,
    check_tensor,
    describe,
    fail,
    once_differentiable,
    register,
    register_gradient,
)

ACTIVATIONS = ("silu", "gelu", "tanh", "identity")
_MAX_RANK = 128
_SUMS = {dtype: torch.finfo(dtype if dtype == torch.float64 else torch.float32) for dtype in FLOATS}


def steer(
    h: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    *,
    mask: Tensor | None = None,
    activation: str = "silu",
    norm_preserving: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """h + scale * (up phi(down u + down_bias) + static), where u is h over its root mean square.

    h: [..., D] float16, bfloat16, float32 or float64; the result has its shape and dtype and never
        shares its memory.
    down [R, D], down_bias [R], up [D, R], static [D], scale []: float32 or the dtype of h, R from 0
        to 128. Gradients have the parameter's dtype.
    mask: bool [...]; where False h is returned exactly and no gradient reaches the parameters.
    activation: phi: silu, gelu (exact), tanh or identity.
    norm_preserving: give the result the norm of h (ratio 1 where the result is 0).
    eps: added to the mean square of h; normal in float32 (float64 for float64).

    The operands of the two products are rounded to the dtype of h; everything is summed in float32
    (float64 for float64). With up and static 0 the result is bit for bit h. Once differentiable;
    autocast has no effect. A wrong shape, dtype, device or option is a DiveError.
    """
    _check(h, down, down_bias, up, static, scale, mask, activation, eps)
    compute_grad = torch.is_grad_enabled() and (
        h.requires_grad
        or up.requires_grad
        or static.requires_grad
        or down.requires_grad
        or down_bias.requires_grad
        or scale.requires_grad
    )
    args = (h, down, down_bias, up, static, scale, mask, activation, norm_preserving, eps)
    if torch.compiler.is_compiling():
        return _steer(*args, compute_grad)[0]
    # what the operator's Autograd kernel does, without a dispatch: this runs at every layer
    if compute_grad:
        return _Steered.apply(*args, True)
    with torch._C._AutoDispatchBelowAutograd():
        return _steer(*args, False)[0]


def _check(
    h: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    activation: str,
    eps: float,
) -> None:
    if not isinstance(h, Tensor) or h.dtype not in FLOATS or h.dim() < 1:
        fail("steer", "h", describe(h), "a floating-point tensor [..., D]")
    if not isinstance(down, Tensor) or down.dim() != 2 or down.shape[0] > _MAX_RANK:
        fail("steer", "down", describe(down), f"a tensor [R, D] with R from 0 to {_MAX_RANK}")
    width, rank, device, dtypes = h.shape[-1], down.shape[0], h.device, (torch.float32, h.dtype)
    # one question where all is well, told apart only where it is not: this runs at every layer
    if not (
        isinstance(down_bias, Tensor)
        and isinstance(up, Tensor)
        and isinstance(static, Tensor)
        and isinstance(scale, Tensor)
        and device == down.device == down_bias.device == up.device == static.device == scale.device
        and down.dtype in dtypes
        and down_bias.dtype in dtypes
        and up.dtype in dtypes
        and static.dtype in dtypes
        and scale.dtype in dtypes
        and down.shape[1] == width
        and down_bias.shape == (rank,)
        and up.shape == (width, rank)
        and static.shape == (width,)
        and scale.dim() == 0
    ):
        check_tensor("steer", "down", down, (rank, width), "rank, hidden size", dtypes, device)
        check_tensor("steer", "down_bias", down_bias, (rank,), "rank", dtypes, device)
        check_tensor("steer", "up", up, (width, rank), "hidden size, rank", dtypes, device)
        check_tensor("steer", "static", static, (width,), "hidden size", dtypes, device)
        check_tensor("steer", "scale", scale, (), "a scalar", dtypes, device)
    if mask is not None:
        shape = tuple(h.shape[:-1])
        check_tensor("steer", "mask", mask, shape, "h without D", (torch.bool,), device)
    if activation not in ACTIVATIONS:
        fail("steer", "activation", repr(activation), "one of " + ", ".join(ACTIVATIONS))
    sums = _SUMS[h.dtype]
    if not (type(eps) in (int, float) and sums.tiny <= eps <= sums.max):
        fail("steer", "eps", repr(eps), f"a number > 0 ({sums.tiny:.3g} to {sums.max:.3g})")


# --- the PyTorch path --------------------------------------------------------------------------


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`; where there is nothing to do, at a tenth of its price."""
    return x if x.dtype == dtype else x.to(dtype)


def _widened(h: Tensor) -> Tensor:
    """[T, D] contiguous in the dtype of summation."""
    x = h if h.dim() == 2 else h.reshape(-1, h.shape[-1])
    x = x.contiguous()
    return x if x.dtype == torch.float64 else x.float()


def _operand(parameter: Tensor, dtype: torch.dtype, wide: torch.dtype) -> Tensor:
    """A factor of a product: rounded to the stream's dtype, held in the dtype of summation."""
    return _to(_to(parameter, dtype), wide)


def _activate(pre: Tensor, activation: str) -> Tensor:
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


def _edited(
    x: Tensor,
    pre: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
    activation: str,
) -> Tensor:
    """[T, D]: x + scale * (up phi(pre) + static), with the scale on the small tensors."""
    wide = pre.dtype
    mix = _operand(_activate(pre, activation), dtype, wide)
    out = x + _to(static, wide) * scale
    return out.addmm_(mix * scale, _operand(up, dtype, wide).t())


def _forward(
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
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    rstd = torch.addcmul(norm.new_full((), eps), norm, norm, value=1 / max(x.shape[1], 1)).rsqrt_()
    pre = torch.mm(x, _operand(down, h.dtype, wide).t())
    pre = torch.addcmul(_to(down_bias, wide), pre, rstd)
    out = _edited(x, pre, up, static, _to(scale, wide), h.dtype, activation)
    if norm_preserving:
        new = torch.linalg.vector_norm(out, dim=1, keepdim=True)
        # without an edit both norms are the same number and their ratio is exactly 1
        out.mul_(torch.where(new > 0, norm / new, 1.0))
    out = _to(out, h.dtype)
    out = out if h.dim() == 2 else out.view_as(h)
    if mask is not None:
        out = torch.where(mask[..., None], out, h)
    if not compute_grad:
        pre, rstd = pre.new_empty(0, 0), rstd.new_empty(0)
    return out, pre, rstd.view(-1)


def _forward_fake(
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
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    out = h.new_empty(h.shape)
    if not compute_grad:
        return out, h.new_empty((0, 0), dtype=wide), h.new_empty((0,), dtype=wide)
    tokens = out.view(-1, h.shape[-1]).shape[0]
    shapes = ((tokens, down.shape[0]), (tokens,))
    return out, *(h.new_empty(shape, dtype=wide) for shape in shapes)  # type: ignore[return-value]


def _backward(
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
    passed = g  # what reaches h past the edit
    if mask is not None:  # whatever masked rows hold, it takes no part
        keep = mask.reshape(-1, 1)
        x, g = torch.where(keep, x, 0.0), torch.where(keep, g, 0.0)
        pre, rstd = torch.where(keep, pre, 0.0), torch.where(keep[:, 0], rstd, 0.0)
    s = _to(scale, wide)
    through_norm = None
    if norm_preserving:
        out = _edited(x, pre, up, static, s, dtype, activation)
        old = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        new = torch.linalg.vector_norm(out, dim=1, keepdim=True)
        safe = torch.where(new > 0, new, 1.0)
        unit = out / safe
        along = (g * unit).sum(1, keepdim=True)
        # d|x|/dx = x / |x|, 0 at 0; a result of 0 was left as it was
        through_norm = torch.where((new > 0) & (old > 0), along / old, 0.0) * x
        g = torch.where(new > 0, (old / safe) * torch.addcmul(g, along, unit, value=-1), g)
        passed = g if mask is None else torch.where(keep, g, passed)

    mix = _operand(_activate(pre, activation), dtype, wide)
    wide_up, wide_down = _operand(up, dtype, wide), _operand(down, dtype, wide)
    at_mix = torch.mm(g, wide_up)  # without the scale
    total = g.sum(0)
    grad_scale = (at_mix * mix).sum() + total @ _to(static, wide)
    grad_up = torch.mm(g.t(), mix) * s
    at_pre = _activation_gradient(at_mix * s, pre, activation)
    grad_bias = at_pre.sum(0)
    scaled = at_pre * rstd[:, None]
    grad_down = torch.mm(scaled.t(), x)
    # u = x rstd: the part along x comes from the [T, R] tensors alone, as (down u) = pre - bias
    along_x = (at_pre * (pre - _to(down_bias, wide))).sum(1)
    along_x = along_x * rstd.square() / max(x.shape[1], 1)
    grad_h = torch.addcmul(passed, along_x[:, None], x, value=-1).addmm_(scaled, wide_down)
    if through_norm is not None:
        grad_h += through_norm
    grad_h = _to(grad_h, dtype)
    return (
        grad_h if h.dim() == 2 else grad_h.view_as(h),
        _to(grad_down, down.dtype),
        _to(grad_bias, down_bias.dtype),
        _to(grad_up, up.dtype),
        _to(total * s, static.dtype),
        _to(grad_scale, scale.dtype),
    )


def _backward_fake(
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
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (h, down, down_bias, up, static, scale))


# --- registration ------------------------------------------------------------------------------

_PARAMETERS = "Tensor down, Tensor down_bias, Tensor up, Tensor static, Tensor scale, Tensor? mask"

_steer = register(
    f"steer(Tensor h, {_PARAMETERS}, str activation, bool norm_preserving, float eps, "
    "bool compute_grad) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_steer_backward = register(
    f"steer_backward(Tensor grad, Tensor h, {_PARAMETERS}, Tensor pre, Tensor rstd, "
    "str activation, bool norm_preserving) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
# dive.ops.triton_path puts the Triton kernels in the place of both on CUDA


class _Steered(torch.autograd.Function):
    """With h' as its only result."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            out, pre, rstd = _steer(*args)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*args[:7], pre, rstd)
        ctx.options = args[7:]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        activation, norm_preserving, _eps, compute_grad = ctx.options
        if grad is None:
            return (None,) * 11
        if not compute_grad:
            raise DiveError("steer: backward of a call that was made with compute_grad=False")
        # outside what follows: under checkpointing this recomputes a layer, with its autograd
        saved = ctx.saved_tensors
        with torch._C._AutoDispatchBelowAutograd():
            grads = _steer_backward(grad, *saved, activation, norm_preserving)
        return (*grads, None, None, None, None, None)


class _Steer(_Steered):
    """With all that the operator returns."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        with torch._C._AutoDispatchBelowAutograd():
            out, pre, rstd = _steer(*args)
        ctx.mark_non_differentiable(pre, rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*args[:7], pre, rstd)
        ctx.options = args[7:]
        return out, pre, rstd


def _with_gradient(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    if torch.is_grad_enabled() and any(t.requires_grad for t in args[:6]):
        return _Steer.apply(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return _steer(*args)


register_gradient("steer", _with_gradient)
