"""What the compiled extension offers. Tensors are anything with `__dlpack__`, on the CPU.

Bad input is a ValueError that names the argument; `dive.extension` turns it into a DiveError.
"""

from collections.abc import Sequence
from typing import Any

class Steering:
    """One layer's steering weights, copied and packed: later changes of the tensors do not count.

    down [rank, width] and up [width, rank] of one dtype; down_bias [rank]; static [width]; each
    float32, bfloat16 or float16, of any strides; rank 0 to 128.
    """

    def __init__(
        self,
        down: Any,
        down_bias: Any,
        up: Any,
        static: Any,
        scale: float,
        *,
        activation: str = "silu",
        norm_preserving: bool = False,
        eps: float = 1e-6,
    ) -> None: ...
    @property
    def rank(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def dtype(self) -> str:
        """Of the products' weights: "float32", "bfloat16" or "float16"."""
    @property
    def nbytes(self) -> int:
        """Of the packed weights."""

def steer_step(
    residual: Any,
    delta: Any = None,
    steering: Steering | Sequence[Steering | None] | None = None,
    norm_weight: Any = None,
    out: Any = None,
    *,
    norm_eps: float = 1e-6,
    norm_plus_one: bool = False,
    mask: Any = None,
) -> None:
    """See `dive.extension.steer_step`; `residual` and `out` are written."""

def build_info() -> dict[str, Any]:
    """version, compiler, build_type, isa_compiled, isa_usable, isa (the one in use), cuda."""

def use_isa(name: str) -> None:
    """Runs the kernels of one instruction set from now on, for tests and comparisons."""
