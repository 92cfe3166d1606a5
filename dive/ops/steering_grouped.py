"""`dive::steer_grouped_`: steering in place, every token by an adapter of its own.

For an engine that decodes requests with several adapters in one batch. It has no gradient.
"""

from typing import Any

import torch
from torch import Tensor

from dive.errors import DiveError
from dive.errors.checks import MAX_RANK
from dive.ops import steering_grouped_torch
from dive.ops.library import FLOATS, check_tensor, fail, register, register_change, value_text
from dive.ops.steering import check_options

_NAME = "steer_grouped_"
_TENSORS = ("hidden", "residual", "adapters", "down", "down_bias", "up", "static", "scale")


def steer_grouped_(
    hidden: Tensor,
    residual: Tensor | None,
    adapters: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    *,
    activation: str = "silu",
    norm_preserving: bool = False,
    eps: float = 1e-6,
) -> None:
    """Adds to every hidden[t] what `steer` with the adapter adapters[t] changes in the state.

    The state of token t is hidden[t] + residual[t], summed in float32, or hidden[t] alone where
    residual is None; the change is added to hidden in place, and residual stays as it is.

    hidden: [T, D] float16, bfloat16, float32 or float64.
    residual: [T, D] float32 or the dtype of hidden, or None.
    adapters: int64 [T or more], of which the first T are read. Below 0, or L and more: no adapter,
        and hidden[t] keeps every bit.
    down [L, R, D], down_bias [L, R], up [L, D, R], static [L, D], scale [L]: the adapters, L from 1
        and R from 0 to 128, in float32 or the dtype of hidden. One of a lower rank has zeros in the
        rest of down, down_bias and up. Views are read as they are where their last dimension is
        contiguous.
    activation, norm_preserving, eps: of `steer`, for all adapters.

    The operands of the two products (of the first, the state) are rounded to the dtype of hidden;
    everything is summed in float32 (float64 for float64). With up and static 0 the row keeps every
    bit. There is no gradient: a tensor that requires one is a DiveError while gradients are
    enabled, as is a wrong shape, dtype, device or option. On a GPU it is one launch without memory
    of its own, and nothing is read on the host, so that it can be captured in a CUDA graph.
    """
    _check(hidden, residual, adapters, down, down_bias, up, static, scale, activation, eps)
    _steer_grouped(
        hidden, residual, adapters, down, down_bias, up, static, scale, activation,
        norm_preserving, eps,
    )  # fmt: skip


def _check(
    hidden: Tensor,
    residual: Tensor | None,
    adapters: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    activation: str,
    eps: float,
) -> None:
    """Raises a DiveError for all that is known without the number of tokens.

    A compiler may not know it: what depends on it is left to `check_tokens`.
    """
    if not isinstance(hidden, Tensor) or hidden.dtype not in FLOATS or hidden.dim() != 2:
        fail(_NAME, "hidden", value_text(hidden), "a floating-point tensor [T, D]")
    if not isinstance(down, Tensor) or down.dim() != 3 or down.shape[0] == 0:
        fail(_NAME, "down", value_text(down), "a tensor [L, R, D] with L from 1")
    if down.shape[1] > MAX_RANK:
        fail(_NAME, "down", value_text(down), f"a tensor [L, R, D] with R from 0 to {MAX_RANK}")
    count, rank, _ = down.shape
    width, device, dtypes = hidden.shape[1], hidden.device, (torch.float32, hidden.dtype)
    wanted: tuple[tuple[str, Tensor, tuple[int, ...], str], ...] = (
        ("down", down, (count, rank, width), "adapters, rank, hidden size"),
        ("down_bias", down_bias, (count, rank), "adapters, rank"),
        ("up", up, (count, width, rank), "adapters, hidden size, rank"),
        ("static", static, (count, width), "adapters, hidden size"),
        ("scale", scale, (count,), "adapters"),
    )
    for name, value, shape, sizes in wanted:
        check_tensor(_NAME, name, value, shape, sizes, dtypes, device)
    if residual is not None and not (
        isinstance(residual, Tensor)
        and residual.dim() == 2
        and residual.dtype in dtypes
        and residual.device == device
    ):
        fail(_NAME, "residual", value_text(residual), f"as hidden: {value_text(hidden)}")
    if not (
        isinstance(adapters, Tensor)
        and adapters.dim() == 1
        and adapters.dtype == torch.int64
        and adapters.device == device
    ):
        fail(_NAME, "adapters", value_text(adapters), f"int64 [T or more] on {device}")
    check_options(_NAME, activation, eps, hidden.dtype)


def check_tokens(hidden: Tensor, residual: Tensor | None, adapters: Tensor) -> None:
    """Raises a DiveError unless residual and adapters have as many tokens as hidden."""
    if residual is not None and residual.shape != hidden.shape:
        fail(_NAME, "residual", value_text(residual), f"as hidden: {value_text(hidden)}")
    if adapters.shape[0] < hidden.shape[0]:
        want = f"int64 [{hidden.shape[0]} or more] on {hidden.device}"
        fail(_NAME, "adapters", value_text(adapters), want)


# --- registration ------------------------------------------------------------------------------


def _everywhere(hidden: Tensor, residual: Tensor | None, adapters: Tensor, *others: Any) -> None:
    check_tokens(hidden, residual, adapters)
    steering_grouped_torch.steer(hidden, residual, adapters, *others)


def _fake(*_: object) -> None:
    pass


_steer_grouped = register(
    f"{_NAME}(Tensor(a!) hidden, Tensor? residual, Tensor adapters, Tensor down, "
    "Tensor down_bias, Tensor up, Tensor static, Tensor scale, str activation, "
    "bool norm_preserving, float eps) -> ()",
    _everywhere,
    _fake,
)
# dive.ops.triton_path registers the Triton kernels over it on CUDA


def _without_gradient(*args: Any) -> None:
    if torch.is_grad_enabled():
        for name, given in zip(_TENSORS, args, strict=False):
            if isinstance(given, Tensor) and given.requires_grad:
                raise DiveError(
                    f"{_NAME}: {name} requires a gradient, want none of them to, or "
                    "torch.no_grad(): this operator has no gradient"
                )
    with torch._C._AutoDispatchBelowAutograd():
        _steer_grouped(*args)


register_change(_NAME, _without_gradient)
