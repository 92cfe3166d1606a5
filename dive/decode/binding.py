"""One model's decoder in `dive._C`, bound to its weights, and the steering for its steps."""

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
from dive.decode.spec import DecoderSpec, read_decoder
from dive.errors import DiveError


class Binding:
    """The engine of one model, lent to one call at a time.

    spec: the decoder as it was bound last. cache: the engine with its KV cache; None before `bind`,
        and while a call has borrowed it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.spec: DecoderSpec | None = None
        self.cache: EngineCache | None = None
        self._packed: WeakKeyDictionary[Any, tuple[Any, list[Any]]] = WeakKeyDictionary()

    def bind(self) -> str | None:
        """Binds the engine, again where the model changed; returns the reason where it cannot."""
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
                    spec = read_decoder(self.model)
                    self.cache = EngineCache(module, spec, self.model)
            except (Unsupported, ValueError) as error:
                return str(error)
            self.spec = spec
            return None

    def lend(self) -> EngineCache:
        """Lends the bound engine, until `give_back`; `bind` makes another if needed meanwhile."""
        assert self.cache is not None
        cache, self.cache = self.cache, None
        return cache

    def give_back(self, cache: EngineCache) -> None:
        """Keeps the engine for the next call, unless there is another one by now."""
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
        key = (
            spec.dtype,
            spec.engine_device,
            *map(version, [*adapter.parameters(), *adapter.buffers()]),
        )
        known = self._packed.get(adapter)
        if known is not None and known[0] == key:
            return known[1]
        steering: list[Any] = [None] * len(spec.layers)
        layers: Any = adapter.layers
        for index, layer in layers.items():
            steering[int(index)] = native.pack_steering(
                layer.down.detach(),
                layer.down_bias.detach(),
                layer.up.detach(),
                layer.static.detach(),
                layer.scale.detach() * layer.sigma,
                dtype=spec.dtype,
                device=spec.device,
                engine_device=spec.engine_device,
                activation=adapter.config.activation,
                norm_preserving=adapter.config.norm_preserving,
                eps=adapter.config.eps,
            )
        self._packed[adapter] = (key, steering)
        return steering

    def steerings(
        self, adapters: Sequence[SteeringAdapter | None], batch: int, spec: DecoderSpec
    ) -> list[Any]:
        """The `steering` of each row of a batch; DiveError where the adapters do not divide it."""
        each, left = divmod(batch, len(adapters))
        if left:
            raise DiveError(
                f"the session has {len(adapters)} adapters, one per sample, for a batch of {batch}"
            )
        return [self.steering(one, spec) for one in adapters for _ in range(each)]


@contextmanager
def without_trace(model: Any) -> Iterator[None]:
    """A context for forwards that only inspect the model: unsteered, and without side effects.

    Qwen-VL stores offsets at every forward; the prompt's own must outlive these.
    """
    base = vars(getattr(model, "base_model", model))
    kept = base.get("rope_deltas")
    try:
        with unsteered(model):
            yield
    finally:
        if "rope_deltas" in base:
            base["rope_deltas"] = kept
