"""The engine's room for sequences: caches taken over from transformers, and steps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dive.backbone.structure import decoder
from dive.decode.model_check import check_modules, state_of
from dive.decode.spec import DecoderSpec
from dive.errors import DiveError

_POSITIONS = 512  # tables of cos and sin grow by so many
_ROOM = 64  # rows are given room in steps of so many tokens


class EngineCache:
    """A `dive._C.Engine` of one model, and the room that it has for sequences.

    capacity: tokens, prompt and answer, that each of the `count` rows has room for.
    """

    def __init__(self, module: Any, spec: DecoderSpec, model: Any) -> None:
        self.spec, self.model, self._module = spec, model, module
        self._signature = _signature(model, spec)
        self.engine = module.Engine(spec.engine_arguments(_POSITIONS))
        self.count = self.capacity = 0
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
        """No row and no room, until some is reserved."""
        self.count = self.capacity = 0

    def reserve(self, count: int, capacity: int) -> None:
        """Room for so many sequences; what the rows held is gone. DiveError: out of memory.

        On a CPU the engine works with as many threads as torch does (torch.set_num_threads), up to
        the cores there are.
        """
        self.vacate()
        self._use_stream()
        on_gpu = self.spec.device.type == "cuda"
        if not on_gpu:
            threads = min(torch.get_num_threads(), self._module.physical_cores())
            if threads != self.engine.threads:
                self.engine.threads = threads
        # in steps, so that a call much like the last finds its room, and its graphs on a GPU, ready
        capacity = -(-capacity // _ROOM) * _ROOM
        try:
            self.engine.reserve(count, capacity)
        except (RuntimeError, MemoryError) as error:
            if not (on_gpu and "out of memory" in str(error)):
                raise DiveError(f"decoding: {error}") from None
            torch.cuda.empty_cache()  # torch holds what the prompt's forward gave back
            try:
                self.engine.reserve(count, capacity)
            except RuntimeError as again:
                raise DiveError(f"decoding: {again}") from None
        self.count, self.capacity = count, capacity

    def allow_positions(self, positions: int) -> None:
        """Tables of the rotary embedding for positions below this one."""
        if positions > self._positions:
            whole = -(-positions // _POSITIONS) * _POSITIONS
            self.engine.set_ropes(self.spec.ropes(whole))
            self._positions = whole

    def adopt(
        self,
        row: int,
        layers: Sequence[Any],
        source: int,
        pad: int,
        length: int,
        position: int,
        steering: list[Any] | None,
    ) -> None:
        """Takes sequence `source` of a transformers cache over into a row.

        layers: of the cache; pad: positions at its left that are none of the sequence's; length:
        tokens read so far, without them; position: the rotary position of the next one.
        """
        self._use_stream()
        # of a decoder whose last layers were cut off, transformers' cache has some that are empty
        for index, layer in enumerate(layers[: len(self.spec.layers)]):
            # a sliding layer keeps the last ones
            first = pad + length - layer.keys.shape[-2]
            start = max(first, pad)
            kept = slice(start - first, None)
            keys, values = layer.keys[source, :, kept], layer.values[source, :, kept]
            self.engine.adopt(index, row, start - pad, keys, values)
        self.engine.start_row(row, length, position)
        self.engine.steer_row(row, steering)

    def step(self, rows: Tensor, tokens: Tensor, logits: Tensor | None = None) -> Tensor:
        """One token for each of these rows; returns the most likely ones after them, NO_TOKEN where
        the logits say nothing (`dive.decode.usable_logits`).

        tokens and what is returned: int64 [n] on the model's device; rows: int64 [n] on the CPU.
        logits: float32 [count, vocabulary] on the device, of which the rows' own are written.
        """
        self._use_stream()
        following = torch.empty_like(tokens)
        try:
            self.engine.step(tokens, rows, following, logits)
        except ValueError as error:  # its weights were moved or freed since it was bound
            raise DiveError(f"decoding: {error}") from None
        return following

    def _use_stream(self) -> None:
        """Puts the engine's work behind what torch has under way on a GPU."""
        if self.spec.device.type == "cuda":
            self.engine.use_stream(torch.cuda.current_stream(self.spec.device).cuda_stream)


def _signature(model: Any, spec: DecoderSpec) -> tuple[Any, ...]:
    """The modules and weights that the engine was bound to; another one means to bind again."""
    text: Any = decoder(model)
    modules = (text, model.get_output_embeddings(), *text.layers)
    weights = tuple((id(w), w.data_ptr(), w.dtype) for w in spec.weights())
    return (tuple(map(id, modules)), weights, state_of(text))
