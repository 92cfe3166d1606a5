"""The engine's slots for sequences: their KV caches, copied from transformers, and the steps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dive.backbone.structure import decoder
from dive.decode.model_check import check_modules, state_of
from dive.decode.spec import DecoderSpec
from dive.errors import DiveError

_POSITIONS = 512  # by which the tables of cos and sin grow
_TOKENS = 64  # of which the capacity of the slots is a multiple


class EngineCache:
    """A `dive._C.Engine` of one model, and the slots of its KV cache.

    slots: how many sequences it holds. capacity: tokens of a sequence, prompt and answer, per slot.
    """

    def __init__(self, module: Any, spec: DecoderSpec, model: Any) -> None:
        self.spec, self.model, self._module = spec, model, module
        self._signature = _signature(model, spec)
        self.engine = module.Engine(spec.engine_arguments(_POSITIONS))
        self.slots = self.capacity = 0
        self._positions = _POSITIONS

    def moved(self) -> bool:
        """Whether the model is no longer what was bound; `Unsupported` as of `read_decoder`."""
        try:
            if self._signature != _signature(self.model, self.spec):
                return True
            check_modules(self.model, self.spec.path, self.spec.head)
        except AttributeError:
            return True  # a module was replaced by one of another kind
        return False

    def vacate(self) -> None:
        """Leaves no slot until some are reserved."""
        self.slots = self.capacity = 0

    def reserve(self, slots: int, capacity: int) -> None:
        """Makes empty slots; what the slots held is lost. DiveError: out of memory.

        On a CPU the engine works with as many threads as torch does (torch.set_num_threads), up to
        the number of cores.
        """
        self.vacate()
        self._use_stream()
        on_gpu = self.spec.device.type == "cuda"
        if not on_gpu:
            threads = min(torch.get_num_threads(), self._module.physical_cores())
            if threads != self.engine.threads:
                self.engine.threads = threads
        # rounded up, so that a call much like the last finds its cache, and its CUDA graphs, ready
        capacity = -(-capacity // _TOKENS) * _TOKENS
        try:
            self.engine.reserve(slots, capacity)
        except (RuntimeError, MemoryError) as error:
            if not (on_gpu and "out of memory" in str(error)):
                raise DiveError(f"decoding: {error}") from None
            torch.cuda.empty_cache()  # torch keeps what the prompt's forward freed
            try:
                self.engine.reserve(slots, capacity)
            except RuntimeError as again:
                raise DiveError(f"decoding: {again}") from None
        self.slots, self.capacity = slots, capacity

    def allow_positions(self, positions: int) -> None:
        """Extends the tables of the rotary embedding to all positions below this one."""
        if positions > self._positions:
            whole = -(-positions // _POSITIONS) * _POSITIONS
            self.engine.set_ropes(self.spec.ropes(whole))
            self._positions = whole

    def copy_cache(
        self,
        slot: int,
        layers: Sequence[Any],
        source: int,
        pad: int,
        length: int,
        position: int,
        steering: list[Any] | None,
    ) -> None:
        """Copies sequence `source` of a transformers cache into a slot and steers the slot.

        layers: of the cache. pad: positions at its left that are padding. length: tokens read so
        far, without padding. position: the rotary position of the next token.
        """
        self._use_stream()
        # where the last layers of a decoder were cut off, theirs in transformers' cache are empty
        for index, layer in enumerate(layers[: len(self.spec.layers)]):
            # a sliding layer keeps the last ones
            first = pad + length - layer.keys.shape[-2]
            start = max(first, pad)
            kept = slice(start - first, None)
            keys, values = layer.keys[source, :, kept], layer.values[source, :, kept]
            self.engine.copy_cache(index, slot, start - pad, keys, values)
        self.engine.start_slot(slot, length, position)
        self.engine.steer_slot(slot, steering)

    def step(self, slots: Tensor, tokens: Tensor, logits: Tensor | None = None) -> Tensor:
        """Runs one token of each of these slots and returns the most likely next ones.

        tokens and the result: int64 [n] on the model's device; slots: int64 [n] on the CPU. The
        result is NO_TOKEN where no token can be chosen (`dive.decode.usable_logits`).
        logits: float32 [all slots, vocabulary] on the device, of which these slots' are written.
        """
        self._use_stream()
        following = torch.empty_like(tokens)
        try:
            self.engine.step(tokens, slots, following, logits)
        except ValueError as error:  # its weights were moved or freed since it was bound
            raise DiveError(f"decoding: {error}") from None
        return following

    def _use_stream(self) -> None:
        """Orders the engine's work after what is on torch's current stream of a GPU."""
        if self.spec.device.type == "cuda":
            self.engine.use_stream(torch.cuda.current_stream(self.spec.device).cuda_stream)


def _signature(model: Any, spec: DecoderSpec) -> tuple[Any, ...]:
    """The modules and weights that the engine was bound to; it is bound again where they differ."""
    text: Any = decoder(model)
    modules = (text, model.get_output_embeddings(), *text.layers)
    weights = tuple((id(w), w.data_ptr(), w.dtype) for w in spec.weights())
    return (tuple(map(id, modules)), weights, state_of(text))
