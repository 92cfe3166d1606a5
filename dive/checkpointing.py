"""Gradient checkpointing of a frozen backbone that stays in eval mode.

transformers checkpoints a decoder layer only where `layer.training` is set, which a frozen model's
is not: switched on in the usual way it would silently save nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dive.attach import attachment_of
from dive.errors import DiveError
from dive.structure import decoder, decoder_layers, is_compiled, unwrap


class Checkpointing:
    """Handle of `enable_gradient_checkpointing`; `remove` puts the layers back as they were."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._decoder = decoder(model)
        self._layers: list[Any] = list(decoder_layers(model))
        if is_compiled(model):
            raise DiveError(
                "gradient checkpointing does not go with torch.compile of the model or of a part "
                "of it, which cannot trace what is computed again: use one of the two"
            )
        if any("gradient_checkpointing" in vars(layer) for layer in self._layers):
            raise DiveError("gradient checkpointing is on already for this model")
        if not all(hasattr(layer, "gradient_checkpointing") for layer in self._layers):
            raise DiveError(
                f"{type(self._layers[0]).__name__} of {type(model).__name__} does not support "
                "gradient checkpointing; train without it"
            )
        run = partial(checkpoint, use_reentrant=False, context_fn=self._contexts)
        for layer in self._layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = run
        self._handles = [
            self._decoder.register_forward_pre_hook(self._before),
            self._decoder.register_forward_hook(self._after, always_call=True),
        ]

    # The flag is up only while the decoder hands out its layers, and only where gradients are
    # wanted: neither `model.eval()` in between nor a teacher's forward has to know about it.
    def _before(self, *_ignored: Any) -> None:
        self._flag(torch.is_grad_enabled())

    def _after(self, *_ignored: Any) -> None:
        self._flag(False)

    def _flag(self, value: bool) -> None:
        for layer in self._layers:
            layer.training = value  # the layer's own flag: its children stay in eval mode

    def _contexts(self) -> tuple[Any, Any]:
        attachment = attachment_of(self._model)
        state = None if attachment is None else (attachment.enabled, attachment.mask)
        return self._in_eval(), self._replay(attachment, state)

    @contextmanager
    def _in_eval(self) -> Iterator[None]:
        """Inside the layer the flag is down: no dropout of a layer's own wakes up.

        It stays down where the layer fails. torch leaves this context only when it collects its
        generator then, which may be after the decoder's own forward has ended.
        """
        self._flag(False)
        yield
        self._flag(True)

    @contextmanager
    def _replay(self, attachment: Any, state: Any) -> Iterator[None]:
        """The backward pass recomputes with the mask of its forward, whatever it is by then.

        Needed where transformers (before 5.2x) runs a layer's hooks inside the checkpoint.
        """
        if attachment is None:
            yield
            return
        now = (attachment.enabled, attachment.mask)
        attachment.enabled, attachment.mask = state
        try:
            yield
        finally:
            attachment.enabled, attachment.mask = now

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for layer in self._layers:
            vars(layer).pop("gradient_checkpointing", None)
            vars(layer).pop("_gradient_checkpointing_func", None)


def enable_gradient_checkpointing(backbone_or_model: Any) -> Checkpointing:
    """Recompute decoder layers in the backward pass instead of keeping their activations.

    The model stays in eval mode (dropout off) and is restored by `.remove()` of what is returned.
    Only forwards under enabled gradients and without a key/value cache are checkpointed.
    """
    return Checkpointing(unwrap(backbone_or_model))
