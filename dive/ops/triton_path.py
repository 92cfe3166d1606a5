"""Registration of the Triton kernels for CUDA, where they replace the PyTorch paths.

float64 stays on the PyTorch path: the kernels sum in float32. The first call imports Triton.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dive.ops import cross_entropy_torch, steering_grouped_torch, steering_torch
from dive.ops.checks import raise_for, raise_for_bad
from dive.ops.chunks import chunk_layout, gradient_scale
from dive.ops.library import register_kernel
from dive.ops.loss_arguments import LossArguments
from dive.ops.steering_grouped import check_tokens


def missing() -> str | None:
    """Returns why the kernels cannot be used on a GPU, or None where they can."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return None if importlib.util.find_spec("triton") is not None else "triton is not installed"


def install(key: str = "CUDA") -> None:
    """Registers the kernels for a device; "CPU" requires Triton's interpreter."""
    kernels: dict[str, Callable[..., Any]] = {
        "steer": _steer,
        "steer_backward": _steer_backward,
        "steer_grouped_": _steer_grouped,
        "decisive_cross_entropy": _loss,
        "decisive_cross_entropy_backward": _loss_backward,
    }
    for name, kernel in kernels.items():
        register_kernel(name, _on_its_device(kernel) if key == "CUDA" else kernel, key)


def _on_its_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the tensor's device current: Triton launches there, and a backbone may span several."""

    @functools.wraps(kernel)
    def run(first: Tensor, *args: Any) -> Any:
        if first.device.index == torch.cuda.current_device():
            return kernel(first, *args)
        with torch.cuda.device(first.device):
            return kernel(first, *args)

    return run


def _steer(h: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    if h.dtype == torch.float64:
        return steering_torch.forward(h, *args)
    from dive.kernels.steer import forward

    return forward(h, *args)


def _steer_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    if grad.dtype == torch.float64:
        return steering_torch.backward(grad, *args)
    from dive.kernels.steer_backward import backward

    return backward(grad, *args)


def _steer_grouped(hidden: Tensor, residual: Tensor | None, adapters: Tensor, *args: Any) -> None:
    check_tokens(hidden, residual, adapters)
    if hidden.dtype == torch.float64:
        return steering_grouped_torch.steer(hidden, residual, adapters, *args)
    from dive.kernels.steer_grouped import steer

    return steer(hidden, residual, adapters, *args)


def _loss(*args: Any) -> tuple[Tensor, ...]:
    given = LossArguments(*args)
    hidden, vocab = given.hidden, given.lm_head.shape[0]
    if hidden.dtype == torch.float64:
        return cross_entropy_torch.forward(given)
    from dive.kernels.cross_entropy import forward
    from dive.kernels.cross_entropy_rows import row_stride
    from dive.kernels.launch_table import host

    buffers = host("cross_entropy_rows", hidden.device, hidden.dtype, 0, vocab)["buffers"]
    layout = chunk_layout(
        given.rows.shape[0],
        row_stride(vocab),
        torch.float32,
        hidden.device,
        given.chunk_bytes // buffers,
        given.teacher_hidden is not None,
        softcap=False,
        tempered=False,
        in_place=True,
    )
    check = functools.partial(raise_for_bad, given=given) if given.validate else None
    scale = gradient_scale(hidden.dtype, vocab)
    results = forward(given, layout.chunk_rows, buffers, scale, check)
    if given.validate:
        raise_for(results[8])
    return results


def _loss_backward(
    grad: Tensor, rows: Tensor, stored: Tensor, row_scale: Tensor, weight_slope: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    if stored.dtype == torch.float64:
        return cross_entropy_torch.backward(grad, rows, stored, row_scale, weight_slope, total)
    from dive.kernels.cross_entropy_rows import backward

    return backward(grad, rows, stored, row_scale, weight_slope, total)
