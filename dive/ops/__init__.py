"""The two operators: `steer` and `decisive_cross_entropy`, as torch.library operators.

They work in eager mode, under torch.compile(fullgraph=True) and under activation checkpointing.
"""

from dive.ops.registration import implementation
from dive.ops.steering import steer

__all__ = ["implementation", "steer"]
