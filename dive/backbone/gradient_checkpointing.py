"""Gradient checkpointing of a frozen backbone that stays in eval mode.

transformers checkpoints a decoder layer only where `layer.training` is set, which a frozen model's
is not: switched on in the usual way it would silently save nothing. Here a layer's own forward is
computed again; hooks run around it, once, so that the backward does not steer a second time.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dive.backbone.kv_cache import caches_in
from dive.backbone.structure import decoder_layers, is_compiled, unwrap
from dive.errors import DiveError


class Checkpointing:
    """Handle of `enable_gradient_checkpointing`; `remove` puts the layers back as they were."""

    def __init__(self, model: nn.Module) -> None:
        self._layers: list[Any] = list(decoder_layers(model))
        if is_compiled(model):
            raise DiveError(
                "gradient checkpointing does not go with torch.compile of the model or of a part "
                "of it, which cannot trace what is computed again: use one of the two"
            )
        if any(
            vars(layer).get("gradient_checkpointing") or _recomputes(layer)
            for layer in self._layers
        ):
            raise DiveError("gradient checkpointing is on already for this model")
        if not all(hasattr(layer, "gradient_checkpointing") for layer in self._layers):
            raise DiveError(
                f"{type(self._layers[0]).__name__} of {type(model).__name__} does not support "
                "gradient checkpointing; train without it"
            )
        for layer in self._layers:
            inner = vars(layer).get("forward")
            if isinstance(inner, RecomputedForward):  # a copied layer's
                inner = inner.inner
            layer.forward = RecomputedForward(layer, inner)

    def remove(self) -> None:
        layers, self._layers = self._layers, []
        for layer in layers:
            own = vars(layer).pop("forward")
            if own.inner is not None:  # accelerate's, of a layer that is offloaded
                layer.forward = own.inner


class RecomputedForward:
    """A layer's forward that is computed again in the backward and keeps no activations.

    It checks by itself whether gradients are enabled, so that a teacher's forward or another
    thread's `generate` needs no switch. The copy of a copied model keeps its activations.
    """

    def __init__(self, layer: nn.Module, inner: Any, on: bool = True) -> None:
        self.layer, self.inner, self.on = layer, inner, on

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = partial(type(self.layer).forward, self.layer)
        run = forward if self.inner is None else self.inner
        if not self.on or not torch.is_grad_enabled() or caches_in(kwargs):
            return run(*args, **kwargs)
        return checkpoint(partial(run, **kwargs), *args, use_reentrant=False)

    def __reduce__(self) -> Any:
        return RecomputedForward, (self.layer, self.inner, False)


def _recomputes(layer: Any) -> bool:
    forward = vars(layer).get("forward")
    return isinstance(forward, RecomputedForward) and forward.on


def enable_gradient_checkpointing(backbone_or_model: Any) -> Checkpointing:
    """Recompute decoder layers in the backward pass instead of keeping their activations.

    The model stays in eval mode (dropout off) and is restored by `.remove()` of the returned
    handle. Only forwards under enabled gradients and without a key/value cache are checkpointed.
    """
    return Checkpointing(unwrap(backbone_or_model))
