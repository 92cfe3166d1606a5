"""What both operators need to stand in torch.library, and their host-side checks.

An operator is one name, `torch.ops.dive.<name>`. Its PyTorch path is registered for every device;
a Triton kernel registers itself for CUDA over it. The backward pass is an autograd.Function on the
Autograd key, which costs a third of what `register_autograd` or `custom_op` costs a call.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dive.errors import DiveError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OPERATORS = ("steer", "decisive_cross_entropy")

_library = torch.library.Library("dive", "FRAGMENT")


def register(schema: str, everywhere: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Defines `dive::<schema>` with a PyTorch path for all devices and a shape rule; the overload.

    Autocast does not reach into the path: an operator computes in the dtypes that it is given.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _library.impl(name, _without_autocast(everywhere), "CompositeExplicitAutograd")
    torch.library.register_fake(f"dive::{name}", fake, lib=_library)
    return getattr(torch.ops.dive, name).default


def register_kernel(name: str, function: Callable[..., Any], key: str = "CUDA") -> None:
    """`function` computes `dive::<name>` on this device in place of the PyTorch path."""
    _library.impl(name, _without_autocast(function), key)


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(first: Tensor, *args: Any) -> Any:
        device = first.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return function(first, *args)
        return function(first, *args)

    return run


def register_gradient(name: str, apply: Callable[..., Any]) -> None:
    """`apply` (of an autograd.Function, or what decides to call it) becomes the Autograd kernel."""
    _library.impl(name, apply, "Autograd")


class _Twice(torch.autograd.Function):
    """Gradients pass; differentiating them again is refused."""

    @staticmethod
    def forward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise DiveError("dive's operators are differentiable once: no second derivative is defined")


def once_differentiable(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """A second derivative through the saved tensors is refused.

    torch's own decorator only notices one through the upstream gradient; else it gives a zero.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, *upstream)
        with torch.no_grad():
            grads = list(backward(ctx, *upstream))
        given = [i for i, grad in enumerate(grads) if grad is not None]
        if given:
            marked = _Twice.apply(*(grads[i].detach().requires_grad_() for i in given))
            for i, grad in zip(given, marked, strict=True):
                grads[i] = grad
        return tuple(grads)

    return run


def implementation(operator: str, device: torch.device | str) -> str:
    """What computes an operator on a device: "triton", or "pytorch" where no kernel is registered.

    implementation("steer", "cuda")
    """
    if operator not in OPERATORS:
        raise DiveError(f"operator is {operator!r}, want one of " + ", ".join(OPERATORS))
    key = torch.device(device).type.upper()
    special = torch._C._dispatch_has_kernel_for_dispatch_key(f"dive::{operator}", key)
    return "triton" if special else "pytorch"


def fail(operator: str, argument: str, got: object, want: str) -> None:
    """The one way in which an operator refuses an argument."""
    raise DiveError(f"{operator}: {argument} is {got}, want {want}")


def value_text(value: object) -> str:
    """A tensor as dtype and shape, anything else as it prints."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
    return repr(value)


def check_tensor(
    operator: str,
    argument: str,
    value: Tensor,
    shape: tuple[int, ...],
    sizes: str,
    dtypes: Iterable[torch.dtype],
    device: torch.device,
) -> None:
    """DiveError unless the tensor has this shape (told as `sizes`), dtype and device."""
    if (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.dtype in dtypes
        and value.device == device
    ):
        return
    names = " or ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in dtypes))
    fail(operator, argument, value_text(value), f"{names} {list(shape)} ({sizes}) on {device}")
