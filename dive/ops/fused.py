"""The Triton kernels in the place of the PyTorch paths, on CUDA.

float64 stays on the PyTorch path: the kernels sum in float32. Triton is imported at the first call.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from dive.ops import steering
from dive.ops.registration import register_kernel


def available() -> bool:
    """Whether this torch has CUDA and Triton can be imported."""
    return torch.version.cuda is not None and importlib.util.find_spec("triton") is not None


def install(key: str = "CUDA") -> None:
    """Registers the kernels for a device; for "CPU" Triton's interpreter has to be on."""
    register_kernel("steer", _steer, key)
    register_kernel("steer_backward", _steer_backward, key)


def _steer(h: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    if h.dtype == torch.float64:
        return steering._forward(h, *args)
    from dive.kernels.steer import forward

    return forward(h, *args)


def _steer_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    if grad.dtype == torch.float64:
        return steering._backward(grad, *args)
    from dive.kernels.steer_backward import backward

    return backward(grad, *args)
