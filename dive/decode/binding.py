"""One model's decoder in `dive._C`: bound to its weights, and the adapters packed for its steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from dive.adapter.adapter import SteeringAdapter
from dive.adapter.attach import unsteered
from dive.backbone.model_lock import model_lock
from dive.decode import native
from dive.decode.engine import EngineCache
from dive.decode.model_check import Unsupported, version
from dive.decode.spec import DecoderSpec, read
from dive.errors import DiveError


class Binding:
    """The engine of one model, lent to one call at a time.

    spec: the decoder as it was bound last. cache: the engine with its room for sequences; None
        before `bind`, and while a call has it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.spec: DecoderSpec | None = None
        self.cache: EngineCache | None = None
        self._packed: WeakKeyDictionary[Any, tuple[Any, list[Any]]] = WeakKeyDictionary()

    def bind(self) -> str | None:
        """Makes the engine ready, anew where the model changed; returns why it cannot be."""
        module = native.load()
        if module is None:
            return native.find().reason
        with model_lock(self.model):
            try:
                if self.cache is not None and not self.cache.moved():
                    return None
            except Unsupported as error:
                return str(error)
            self.cache = self.spec = None
            try:
                with without_trace(self.model):
                    spec = read(self.model)
                    self.cache = EngineCache(module, spec, self.model)
            except (Unsupported, ValueError) as error:
                return str(error)
            self.spec = spec
            return None

    def lend(self) -> EngineCache:
        """The bound engine, until it is given back; `bind` makes another if one is needed."""
        assert self.cache is not None
        cache, self.cache = self.cache, None
        return cache

    def give_back(self, cache: EngineCache) -> None:
        """Takes the engine for the next call, unless there is another by now."""
        if self.cache is None:
            self.cache, self.spec = cache, cache.spec

    def steering(
        self, adapter: SteeringAdapter | None, spec: DecoderSpec | None = None
    ) -> list[Any] | None:
        """One packed steering or None per layer; packed again where a parameter changed."""
        if adapter is None:
            return None
        spec = self.spec if spec is None else spec
        assert spec is not None
        key = (spec.dtype, *map(version, [*adapter.parameters(), *adapter.buffers()]))
        known = self._packed.get(adapter)
        if known is not None and known[0] == key:
            return known[1]
        steering: list[Any] = [None] * len(spec.layers)
        layers: Any = adapter.layers
        for index, layer in layers.items():
            packed = native.pack_steering(
                layer.down.detach().cpu(),
                layer.down_bias.detach().cpu(),
                layer.up.detach().cpu(),
                layer.static.detach().cpu(),
                layer.scale.detach() * layer.sigma,
                dtype=spec.dtype,
                activation=adapter.config.activation,
                norm_preserving=adapter.config.norm_preserving,
                eps=adapter.config.eps,
            )
            steering[int(index)] = packed.compiled
        self._packed[adapter] = (key, steering)
        return steering

    def steerings(
        self, adapters: Sequence[SteeringAdapter | None], batch: int, spec: DecoderSpec
    ) -> list[Any]:
        """The `steering` of each row of a batch; DiveError where the batch does not divide."""
        each, left = divmod(batch, len(adapters))
        if left:
            raise DiveError(
                f"the session has {len(adapters)} adapters, one a row, and the batch {batch} rows"
            )
        return [self.steering(one, spec) for one in adapters for _ in range(each)]


@contextmanager
def without_trace(model: Any) -> Iterator[None]:
    """For a forward that only looks at the model: unsteered, and it leaves no trace.

    Qwen-VL notes down offsets at every forward; the prompt's own must outlive ours.
    """
    base = vars(getattr(model, "base_model", model))
    kept = base.get("rope_deltas")
    try:
        with unsteered(model):
            yield
    finally:
        if "rope_deltas" in base:
            base["rope_deltas"] = kept
