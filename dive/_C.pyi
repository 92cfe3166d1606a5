"""What the compiled extension offers. Tensors are anything with `__dlpack__`, on the CPU.

Bad input is a ValueError or TypeError that names the argument; `dive.decode.native` turns the
former into a DiveError. What a sequence makes when it is read is held as long as it is used, and
memory that was freed or moved since is refused. One fault is not found: `step` accepts a tensor
whose storage was made smaller but not freed, as finding it would need a call of torch per step.
"""

from collections.abc import Sequence
from typing import Any

class Steering:
    """A copy of one layer's steering weights on one device: later changes do not reach it.

    down [rank, width] and up [width, rank] of one dtype, down_bias [rank], static [width]; rank 0
    to 128. device: "cpu", or "cuda:" and a number, on which the tensors lie.
    down and up are float32 or bfloat16, on CUDA also float16; down_bias and static are float32. On
    the CPU they have any strides. On CUDA the rows of down and the columns of up lie one after
    another, and the copy is made behind the work that is on `stream`, the handle of a CUDA stream.
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
        device: str = "cpu",
        stream: int = 0,
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
        """Of the copy."""

class Engine:
    """A decoder's weights, used where they lie, with a cache of its own: one call per step.

    spec: what `dive.decode.spec.DecoderSpec.engine_arguments` gives. Its tensors are kept
    alive, whatever becomes of the dict; a step refuses to run where one was moved or freed since.
    """

    def __init__(self, spec: dict[str, Any]) -> None: ...
    def use_stream(self, stream: int) -> None:
        """The CUDA stream, by its handle, that the calls after this one put their work on."""

    def reserve(self, slots: int, capacity: int) -> None:
        """Memory for `slots` sequences of `capacity` tokens, all empty and unsteered."""

    def set_ropes(self, ropes: list[dict[str, Any]]) -> None:
        """Longer tables of cos and sin, as in the spec."""

    def copy_cache(self, layer: int, slot: int, first: int, keys: Any, values: Any) -> None:
        """Copies keys and values [kv heads, tokens, head width] to tokens `first` and on."""

    def start_slot(self, slot: int, length: int, position: int) -> None:
        """The slot holds `length` tokens; its next one has the rotary position `position`."""

    def steer_slot(self, slot: int, steering: Sequence[Steering | None] | None) -> None:
        """One Steering or None per layer, in the model's dtype; None steers nothing."""

    def step(self, tokens: Any, slots: Any, next: Any, logits: Any = None) -> None:
        """Runs tokens[i] in slot slots[i]; next[i] becomes the most likely token after it, or -1
        where the largest logit is not finite (a NaN is larger than any number).

        tokens, slots, next: int64 [n], slots on the CPU, the others on the model's device. A token
        outside the vocabulary is an error on the CPU and is taken as 0 on CUDA.
        logits: float32 [reserved slots, vocabulary] on the device, of which those of the
        slots that ran are written.
        """

    @property
    def cache_bytes(self) -> int: ...
    @property
    def threads(self) -> int:
        """That share a step's work, the calling one included: 1 (at first) to `physical_cores`.

        The numbers are the same for any. On a CPU; elsewhere it has no effect.
        """
    @threads.setter
    def threads(self, count: int) -> None: ...

def physical_cores() -> int:
    """Cores that this process may run on, which is the most threads that an Engine takes."""

def read_memory(memory: Any, *, streams: int = 1, ahead: int = 0, threads: int = 1) -> int:
    """Reads a float32 vector once, for benchmarks; a number that depends on all of it.

    memory: a multiple of 4096 bytes from a cache line on. streams: 1, 2, 4 or 8 places that are
    read side by side. ahead: bytes that are asked for before their use.
    """

def copy_memory(
    target: Any,
    source: Any,
    *,
    streams: int = 1,
    ahead: int = 0,
    past_caches: bool = False,
    threads: int = 1,
) -> None:
    """Copies a float32 vector, for benchmarks; as `read_memory`. past_caches: of the stores."""

def build_info() -> dict[str, Any]:
    """version, compiler, build_type, isa_compiled, isa_usable, isa (the one in use), cuda,
    cuda_archs (the GPUs that it was compiled for)."""

def use_isa(name: str) -> None:
    """Runs the kernels of one instruction set from now on, for tests and comparisons."""
