"""The operators `steer`, `steer_grouped_` and `decisive_cross_entropy`, as torch.library operators.

They work in eager mode and under torch.compile(fullgraph=True); the two for training, `steer` and
`decisive_cross_entropy`, under activation checkpointing, too.
`implementation` names what computes an operator on a device, `missing` states why the Triton
kernels cannot, `check` raises for bad values that a loss has found.
"""

import warnings

import torch

from dive.errors import FallbackWarning
from dive.ops import triton_path
from dive.ops.checks import check
from dive.ops.cross_entropy import decisive_cross_entropy
from dive.ops.library import implementation
from dive.ops.steering import steer
from dive.ops.steering_grouped import steer_grouped_
from dive.ops.triton_path import missing
from dive.reference import DecisiveLoss

if triton_path.missing() is None:
    triton_path.install()
elif torch.cuda.is_available():
    warnings.warn(
        f"dive's operators run in PyTorch on this GPU, slower than their Triton kernels: "
        f"{triton_path.missing()}",
        FallbackWarning,
        stacklevel=2,
    )

__all__ = [
    "DecisiveLoss",
    "check",
    "decisive_cross_entropy",
    "implementation",
    "missing",
    "steer",
    "steer_grouped_",
]
