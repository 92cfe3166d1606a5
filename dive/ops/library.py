"""Registration of the operators with torch.library, and their host-side checks.

An operator is one name, `torch.ops.dive.<name>`. Its PyTorch path is registered for every device;
a Triton kernel registers itself for CUDA over it. The backward pass is an autograd.Function on the
Autograd key, which costs a third of what `register_autograd` or `custom_op` costs per call.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dive.errors import DiveError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OPERATORS = ("steer", "steer_grouped_", "decisive_cross_entropy")

_library = torch.library.Library("dive", "FRAGMENT")


def register(schema: str, everywhere: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Defines `dive::<schema>` with a PyTorch path for all devices and a shape rule.

    Returns the overload. Autocast does not reach into the path: an operator computes in the dtypes
    of its arguments.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _library.impl(name, _without_autocast(everywhere), "CompositeExplicitAutograd")
    torch.library.register_fake(f"dive::{name}", fake, lib=_library)
    return getattr(torch.ops.dive, name).default


def register_kernel(name: str, function: Callable[..., Any], key: str = "CUDA") -> None:
    """Registers `function` for `dive::<name>` on a device, where it replaces the PyTorch path."""
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


def register_change(name: str, apply: Callable[..., Any]) -> None:
    """Registers `apply` for an operator that writes to its first argument and has no gradient.

    It runs above the device's kernel, counts the write (autograd looks for changes of what it has
    saved) and goes on below.
    """
    _library.impl(name, apply, "Autograd")
    _library.impl(name, _counted(getattr(torch.ops.dive, name).default), "ADInplaceOrView")


def _counted(overload: Any) -> Callable[..., Any]:
    def run(first: Tensor, *args: Any) -> Any:
        torch.autograd.graph.increment_version(first)
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return overload(first, *args)

    return run


def register_gradient(name: str, apply: Callable[..., Any]) -> None:
    """Registers `apply` (of an autograd.Function, or what calls it) as the Autograd kernel."""
    _library.impl(name, apply, "Autograd")


class _Twice(torch.autograd.Function):
    """Passes gradients on and refuses to differentiate them again."""

    @staticmethod
    def forward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise DiveError("dive's operators are differentiable once: no second derivative is defined")


def once_differentiable(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """Makes `backward` refuse a second derivative through the saved tensors.

    torch's own decorator only detects one through the upstream gradient; otherwise it returns zero.
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
    """Returns what computes an operator on a device: "triton", or "pytorch" without a kernel.

    implementation("steer", "cuda")
    """
    if operator not in OPERATORS:
        raise DiveError(f"operator is {operator!r}, want one of " + ", ".join(OPERATORS))
    key = torch.device(device).type.upper()
    special = torch._C._dispatch_has_kernel_for_dispatch_key(f"dive::{operator}", key)
    return "triton" if special else "pytorch"


def fail(operator: str, argument: str, got: object, want: str) -> None:
    """Raises the DiveError by which an operator refuses an argument."""
    raise DiveError(f"{operator}: {argument} is {got}, want {want}")


def value_text(value: object) -> str:
    """Returns a tensor as its dtype, shape and device, anything else as its repr."""
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
    """Raises a DiveError unless the tensor has this shape (`sizes` in words), dtype and device."""
    if (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.dtype in dtypes
        and value.device == device
    ):
        return
    names = " or ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in dtypes))
    fail(operator, argument, value_text(value), f"{names} {list(shape)} ({sizes}) on {device}")
