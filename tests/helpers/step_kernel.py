"""The CPU's kernel of [residual add + steering + RMSNorm] by itself, as a decode step runs it.

`module()` is dive._C built with `steer_step` in addition, and with the flags of a release.
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tests.helpers import host_builds


@cache
def module() -> ModuleType:
    """The built module; `CannotBuild` where this machine has no compiler."""
    folder = host_builds.ROOT / "build" / "step_kernel"
    host_builds.build(folder, ["_C_step"], "-DCMAKE_BUILD_TYPE=Release")
    return host_builds.load(folder, "_C_step")


def pack(
    down: Tensor, down_bias: Tensor, up: Tensor, static: Tensor, scale: Any, **kind: Any
) -> Any:
    """The `Steering` of `module()`, of weights as `dive.ops.steer` takes them."""
    return module().Steering(down, down_bias, up, static, float(scale), **kind)


def steer_step(
    residual: Tensor,
    delta: Tensor | None = None,
    steering: Any | Sequence[Any | None] = None,
    norm_weight: Tensor | None = None,
    out: Tensor | None = None,
    *,
    norm_eps: float = 1e-6,
    norm_plus_one: bool = False,
) -> Tensor | None:
    """Writes `residual` in place and returns its norm, in `out` where one is given.

    residual [B, D] becomes r' = steer(residual + delta), and rmsnorm(r') is returned; None without
    `norm_weight`. All of one dtype, float32 or bfloat16.
    delta [B, D]: what attention or MLP adds; None adds nothing.
    steering: one of `pack` for all rows, or a list with one or None per row.
    norm_weight [D], in residual's dtype or float32. norm_plus_one=False is Llama's norm,
    weight * round(x / rms), True is Gemma's, round(x / rms * (1 + weight)).
    """
    if not isinstance(steering, list):
        steering = [steering] * residual.shape[0]
    if out is None and norm_weight is not None:
        out = torch.empty_like(residual, memory_format=torch.contiguous_format)
    module().steer_step(residual, delta, steering, norm_weight, out, norm_eps, norm_plus_one)
    return out
