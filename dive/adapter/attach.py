"""Attaching an adapter to a model, and detaching it without a trace.

It works by hooks on the model's own decoder layers; no class is patched, no weight is changed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dive.adapter.adapter import SteeringAdapter, as_adapter
from dive.adapter.at_work import Work, at_work, call_of_its_own, in_the_way, scope
from dive.adapter.contexts import as_no_hook
from dive.adapter.decoder_site import uncompiled
from dive.backbone.generator_context import iterate_within
from dive.backbone.structure import computes_on, decoder_layers, forget_compiled, unwrap
from dive.errors import DiveError

T = TypeVar("T")


class Attachment(Work):
    """An adapter in effect on a model, until `detach` or the end of the `with` block.

    In a `with` it steers the thread (or asyncio task) that entered it, and others may have an
    attachment of their own on the same model at the same time; without, every thread that has none.
    The two attributes hold for all threads that it steers.

    mask: bool [B, T], the positions that are steered in the next forwards, or None. With None the
        adapter's own rule holds: all positions, or with positions="response" the last position of
        every forward (the last prompt position at prefill under left padding, then each generated
        token). Training gives the mask of the response explicitly; so must whatever runs a prompt
        in pieces or several generated tokens at once.
    enabled: False lets states pass unchanged.
    """

    adapter: SteeringAdapter | None

    def __init__(
        self, model: nn.Module, adapter: SteeringAdapter, check: bool = True, scoped: bool = False
    ) -> None:
        """Attaches the adapter.

        check: whether to compare the adapter with the model's weights; False where the caller did.
        scoped: it is in effect only inside `working`.
        """
        self.adapter = adapter
        if check:
            adapter.check_backbone(model)
        self._register_hooks(model, [int(index) for index in adapter.layers], scoped)

    def _register_hooks(
        self, model: nn.Module, indices: Iterable[int], scoped: bool = False
    ) -> None:
        """Registers hooks on the layers with these indices."""
        self.mask: Tensor | None = None
        self.enabled = True
        self.register(model, scoped)
        try:
            forget_compiled(model)
            layers = decoder_layers(model)
            hooks = [
                _Hook(self, layers[index], self._edit(index, computes_on(layers[index])))
                for index in indices
            ]
            # first: the hooks by which transformers records hidden states must see our output
            self._handles += [
                hook.layer.register_forward_hook(hook, prepend=True) for hook in hooks
            ]
            self.ready()
        except BaseException:
            self.detach()
            raise

    def _edit(self, index: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """The function that edits the output [B, T, D] of layer `index`, which is on `device`."""
        assert self.adapter is not None
        layers: Any = self.adapter.layers
        steering = layers[str(index)].to(device)
        last_only = self.adapter.config.positions == "response"
        return lambda hidden: steering(hidden, self._positions(hidden, last_only))

    @property
    def adapters(self) -> tuple[SteeringAdapter | None, ...]:
        """The adapter of the whole batch, or one entry per sample."""
        return (self.adapter,)

    def _positions(self, hidden: Tensor, last_only: bool) -> Tensor | None:
        if self.mask is not None:
            if self.mask.shape != hidden.shape[:-1]:
                raise DiveError(
                    f"attachment.mask is {list(self.mask.shape)}, but this forward has the "
                    f"positions {list(hidden.shape[:-1])}"
                )
            return self.mask.to(hidden.device)
        if not last_only or hidden.shape[-2] == 1:
            return None
        last = torch.zeros(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)
        last[..., -1] = True
        return last

    def detach(self) -> None:
        """Removes every hook; the model is then what it was before. A second call does nothing.

        A forward of another thread that is under way keeps the adapter until it ends.
        """
        self.leave()

    def __enter__(self) -> "Attachment":
        self.enter()
        return self

    def __exit__(self, *_error: object) -> None:
        self.detach()

    def __reduce__(self) -> Any:
        raise DiveError(
            "an attachment belongs to its model and can be neither copied nor pickled; give the "
            "copy of the model its own with dive.steer"
        )


class PerSampleAttachment(Attachment):
    """An `Attachment` with an adapter, or none, per sample of a batch.

    adapters: one entry per sample of the next forwards. In a batch k times as long each counts for
        k samples in a row, as beams and `num_return_sequences` need it. Setting it attaches
        nothing anew.
    A sample is computed as it would be alone, by its adapter's own rule of positions; `mask` is not
    supported.
    """

    def __init__(
        self,
        backbone_or_model: Any,
        adapters: Sequence[SteeringAdapter | None] = (None,),
        check: bool = True,
        scoped: bool = False,
    ) -> None:
        self.adapter = None
        self._check = check
        self._known: list[SteeringAdapter] = []
        model = unwrap(backbone_or_model)
        self._devices = [computes_on(layer) for layer in decoder_layers(model)]
        self._register_hooks(model, range(len(self._devices)), scoped)
        try:
            self.adapters = adapters
        except DiveError:
            self.detach()
            raise

    @property
    def adapters(self) -> tuple[SteeringAdapter | None, ...]:
        return self._adapters

    @adapters.setter
    def adapters(self, adapters: Iterable[SteeringAdapter | None]) -> None:
        adapters = tuple(adapters)
        if not adapters:
            raise DiveError("adapters is empty, want an adapter or None per sample")
        for adapter in adapters:
            if adapter is None or any(adapter is known for known in self._known):
                continue
            if self._check:
                adapter.check_backbone(self.model)
            for index, steering in adapter.layers.items():
                steering.to(self._devices[int(index)])
            self._known.append(adapter)
        self._adapters = adapters

    def _edit(self, index: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        def edit(hidden: Tensor) -> Tensor:
            if self.mask is not None:
                raise DiveError("a mask of positions does not go with an adapter per sample")
            each, left = divmod(hidden.shape[0], len(self._adapters))
            if left:
                raise DiveError(
                    f"{len(self._adapters)} adapters were given, one per sample, for a batch of "
                    f"{hidden.shape[0]}"
                )
            parts = list(hidden.split(each))
            for i, adapter in enumerate(self._adapters):
                layers: Any = () if adapter is None else adapter.layers
                if adapter is not None and str(index) in layers:
                    last_only = adapter.config.positions == "response"
                    positions = self._positions(parts[i], last_only)
                    parts[i] = layers[str(index)](parts[i], positions)
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return edit


class _Hook:
    """The forward hook that steers one layer's output where its attachment is in effect."""

    def __init__(
        self, attachment: Attachment, layer: nn.Module, edit: Callable[[Tensor], Tensor]
    ) -> None:
        self.attachment, self.layer, self.edit = attachment, layer, edit

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self._of_now(module, inputs, output)
        if not self.attachment.traced:
            # the attachment is decided in every run: the graph breaks here
            return uncompiled(self._of_now, module, inputs, output)
        if not self.attachment.enabled:
            return None
        return _replaced(output, self.edit(_states(output)))

    def _of_now(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        attachment = self.attachment
        if module is not self.layer:
            if getattr(module, "_is_replica", False):
                raise DiveError(
                    "torch.nn.DataParallel runs copies of the layers, which are not steered: give "
                    "it the model without an adapter, or run one process per GPU"
                )
            return None  # a copy of the layer that shares our hooks
        work, hidden = attachment.site.current(), _states(output)
        if work is not attachment or not attachment.enabled:
            if work is None or work is attachment:
                attachment.site.learns_bare(inputs, hidden)
            return None
        steered = self.edit(hidden)
        attachment.learns(inputs, steered)
        return _replaced(output, steered)

    def __reduce__(self) -> Any:
        return as_no_hook, ()


def _states(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _replaced(output: Any, steered: Tensor) -> Any:
    return (steered, *output[1:]) if isinstance(output, tuple) else steered


def steer(backbone_or_model: Any, adapter: SteeringAdapter | str | Path) -> Attachment:
    """Attaches `adapter`, or the one that its folder or hub id holds.

    Used in a `with` it steers the thread (or asyncio task) that entered it, and only that; without,
    all threads that have no `with` of their own, as PEFT's adapters do, until `.detach()`. A thread
    that is started inside a `with` has to be given its context (`contextvars.copy_context().run`).

    The adapter's parameters move to the devices of their layers. What another thread or task has
    attached for all threads is no hindrance: this attachment takes precedence.

    Raises:
        DiveError: the adapter belongs to another backbone, or this thread or task has attached
            another one already.
    """
    return Attachment(unwrap(backbone_or_model), as_adapter(adapter, "steer: adapter"))


def attachment_of(model: Any) -> Attachment | None:
    """The attachment that steers the model now, for this thread or task, if any."""
    found: Any = at_work(decoder_layers(model)[0], is_forward=False)
    return found


def attached_here(model: Any) -> bool:
    """Whether this thread or task made an attachment; those of others for all do not count."""
    return in_the_way(decoder_layers(model)[0]) is not None


def first_layer(model: Any) -> nn.Module | None:
    """The layer that identifies a model to `scope`; None for a model without known layers."""
    try:
        return decoder_layers(model)[0]
    except DiveError:
        return None


def unsteered(model: Any) -> Any:
    """A context for this thread in which the model's forwards are unsteered, whatever is attached.

    Not to be held over a `yield` of a generator.
    """
    return scope(first_layer(model), None)


def each_of_its_own(model: Any, results: Iterator[T]) -> Iterator[T]:
    """Yields the same results, each computed without the attachment of a call of dive around it.

    Closing it closes `results`.
    """
    return iterate_within(partial(call_of_its_own, first_layer(model)), results)
