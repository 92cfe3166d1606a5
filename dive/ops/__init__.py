"""The two operators: `steer` and `decisive_cross_entropy`, as torch.library operators.

They work in eager mode, under torch.compile(fullgraph=True) and under activation checkpointing.
`implementation` tells what computes one on a device, `check` reports values a loss found bad.
"""

from dive.ops import fused
from dive.ops.cross_entropy import decisive_cross_entropy
from dive.ops.registration import implementation
from dive.ops.steering import steer
from dive.ops.values import check
from dive.reference import DecisiveLoss

if fused.available():
    fused.install()

__all__ = ["DecisiveLoss", "check", "decisive_cross_entropy", "implementation", "steer"]
