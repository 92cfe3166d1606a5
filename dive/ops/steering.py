"""`dive::steer`: state-conditioned steering of the residual stream, with its backward pass."""

from typing import Any

import torch
from torch import Tensor

from dive.errors import DiveError
from dive.errors.checks import ACTIVATIONS, MAX_RANK
from dive.ops import steering_torch
from dive.ops.library import (
    FLOATS,
    check_tensor,
    fail,
    once_differentiable,
    register,
    register_gradient,
    value_text,
)

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
    """Returns h + scale * (up phi(down u + down_bias) + static), u being h over its RMS.

    h: [..., D] float16, bfloat16, float32 or float64; the result has its shape and dtype and never
        shares its memory.
    down [R, D], down_bias [R], up [D, R], static [D], scale []: float32 or the dtype of h, R from 0
        to 128. Gradients have the parameter's dtype.
    mask: bool [...]; where False h is returned exactly and no gradient reaches the parameters.
    activation: phi: silu, gelu (exact), tanh or identity.
    norm_preserving: scale the result to the norm of h (by 1 where the result is 0).
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
    # what the operator's Autograd kernel does, without the dispatch: this runs at every layer
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
        fail("steer", "h", value_text(h), "a floating-point tensor [..., D]")
    if not isinstance(down, Tensor) or down.dim() != 2 or down.shape[0] > MAX_RANK:
        fail("steer", "down", value_text(down), f"a tensor [R, D] with R from 0 to {MAX_RANK}")
    width, rank, device, dtypes = h.shape[-1], down.shape[0], h.device, (torch.float32, h.dtype)
    # one test where all is right, details only where it is not: this runs at every layer
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
    check_options("steer", activation, eps, h.dtype)


def check_options(operator: str, activation: str, eps: float, dtype: torch.dtype) -> None:
    """Raises a DiveError unless a stream of this dtype can be steered with these options."""
    if activation not in ACTIVATIONS:
        fail(operator, "activation", repr(activation), "one of " + ", ".join(ACTIVATIONS))
    sums = _SUMS[dtype]
    if not (type(eps) in (int, float) and sums.tiny <= eps <= sums.max):
        fail(operator, "eps", repr(eps), f"a number > 0 ({sums.tiny:.3g} to {sums.max:.3g})")


# --- registration ------------------------------------------------------------------------------


def _forward_fake(h: Tensor, down: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor]:
    compute_grad = others[-1]
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    out = h.new_empty(h.shape)
    if not compute_grad:
        return out, h.new_empty((0, 0), dtype=wide), h.new_empty((0,), dtype=wide)
    tokens = out.view(-1, h.shape[-1]).shape[0]
    shapes = ((tokens, down.shape[0]), (tokens,))
    return out, *(h.new_empty(shape, dtype=wide) for shape in shapes)  # type: ignore[return-value]


def _backward_fake(grad: Tensor, *given: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in given[:6])


_PARAMETERS = "Tensor down, Tensor down_bias, Tensor up, Tensor static, Tensor scale, Tensor? mask"

_steer = register(
    f"steer(Tensor h, {_PARAMETERS}, str activation, bool norm_preserving, float eps, "
    "bool compute_grad) -> (Tensor, Tensor, Tensor)",
    steering_torch.forward,
    _forward_fake,
)
_steer_backward = register(
    f"steer_backward(Tensor grad, Tensor h, {_PARAMETERS}, Tensor pre, Tensor rstd, "
    "str activation, bool norm_preserving) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    steering_torch.backward,
    _backward_fake,
)
# dive.ops.triton_path registers the Triton kernels over both on CUDA


class _Steered(torch.autograd.Function):
    """The operator with h' as its only result."""

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
    """The operator with all its results."""

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
