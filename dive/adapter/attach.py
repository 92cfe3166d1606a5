"""Attach an adapter to a model, and take it off without a trace.

Hooks on the model's own decoder layers; no class is patched and no weight is touched.
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
    """An adapter at work on a model, until `detach` or the end of the `with` block.

    In a `with` it is at work for the thread (or asyncio task) that entered it, and others may have
    one of their own on the same model at the same time; without, for every thread that has none.
    The three attributes are the attachment's, for all threads that it steers.

    mask: bool [B, T], the positions that are steered in the next forwards, or None. With None the
        adapter's own rule holds: all positions, or with positions="response" the last position of
        every forward (the last prompt position at prefill under left padding, then each generated
        token). Training gives the mask of the response explicitly; so must whatever runs a prompt
        in pieces or several generated tokens at once.
    enabled: False lets states pass unchanged.
    calls: how often a layer was steered outside compiled code, to assert that there was an effect.
        Of several threads at once a few may be missed.
    """

    adapter: SteeringAdapter | None

    def __init__(
        self, model: nn.Module, adapter: SteeringAdapter, check: bool = True, scoped: bool = False
    ) -> None:
        """check: False where the caller has done so: the model's weights are looked at. scoped: it
        works only inside `working`."""
        self.adapter = adapter
        if check:
            adapter.check_backbone(model)
        self._hang(model, [int(index) for index in adapter.layers], scoped)

    def _hang(self, model: nn.Module, indices: Iterable[int], scoped: bool = False) -> None:
        """Hooks on these layers of a model that has no attachment yet."""
        self.mask: Tensor | None = None
        self.enabled = True
        self.calls = 0
        self.hang(model, scoped)
        try:
            forget_compiled(model)
            layers = decoder_layers(model)
            hooks = [
                _Hook(self, layers[index], self._edit(index, computes_on(layers[index])))
                for index in indices
            ]
            # first in line: transformers records hidden states by hooks, which must see our output
            self._handles += [
                hook.layer.register_forward_hook(hook, prepend=True) for hook in hooks
            ]
            self.ready()
        except BaseException:
            self.detach()
            raise

    def _edit(self, index: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """What happens to the output [B, T, D] of layer `index`, which computes on `device`."""
        assert self.adapter is not None
        layers: Any = self.adapter.layers
        steering = layers[str(index)].to(device)
        last_only = self.adapter.config.positions == "response"
        return lambda hidden: steering(hidden, self._positions(hidden, last_only))

    @property
    def steers(self) -> tuple[SteeringAdapter | None, ...]:
        """The adapter of all rows of a batch, or one entry a row."""
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
        """Takes every hook away; the model is then what it was before. Twice is harmless.

        A forward of another thread that is under way keeps its adapter to its end.
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


class RowAttachment(Attachment):
    """An `Attachment` with an adapter of its own, or none, for every row of a batch.

    rows: what steers each row of the next forwards. A batch k times as long repeats each k times,
        as beams and `num_return_sequences` do. Set as often as wanted: nothing is attached anew.
    A row is computed as it would be alone, by its adapter's own rule of positions; there is no
    `mask` here.
    """

    def __init__(
        self,
        backbone_or_model: Any,
        rows: Sequence[SteeringAdapter | None] = (None,),
        check: bool = True,
        scoped: bool = False,
    ) -> None:
        self.adapter = None
        self._check = check
        self._known: list[SteeringAdapter] = []
        model = unwrap(backbone_or_model)
        self._devices = [computes_on(layer) for layer in decoder_layers(model)]
        self._hang(model, range(len(self._devices)), scoped)
        try:
            self.rows = rows
        except DiveError:
            self.detach()
            raise

    @property
    def rows(self) -> tuple[SteeringAdapter | None, ...]:
        return self._rows

    @rows.setter
    def rows(self, rows: Iterable[SteeringAdapter | None]) -> None:
        rows = tuple(rows)
        if not rows:
            raise DiveError("rows is empty, want an adapter or None for every row")
        for adapter in rows:
            if adapter is None or any(adapter is known for known in self._known):
                continue
            if self._check:
                adapter.check_backbone(self.model)
            for index, steering in adapter.layers.items():
                steering.to(self._devices[int(index)])
            self._known.append(adapter)
        self._rows = rows

    @property
    def steers(self) -> tuple[SteeringAdapter | None, ...]:
        return self._rows

    def _edit(self, index: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        def edit(hidden: Tensor) -> Tensor:
            if self.mask is not None:
                raise DiveError("a mask of positions does not go with an adapter for every row")
            each, left = divmod(hidden.shape[0], len(self._rows))
            if left:
                raise DiveError(
                    f"{len(self._rows)} adapters were given, one a row, for a batch of "
                    f"{hidden.shape[0]} rows"
                )
            parts = list(hidden.split(each))
            for row, adapter in enumerate(self._rows):
                layers: Any = () if adapter is None else adapter.layers
                if adapter is not None and str(index) in layers:
                    last_only = adapter.config.positions == "response"
                    positions = self._positions(parts[row], last_only)
                    parts[row] = layers[str(index)](parts[row], positions)
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return edit


class _Hook:
    """Steers one layer's output in the forwards that are its attachment's."""

    def __init__(
        self, attachment: Attachment, layer: nn.Module, edit: Callable[[Tensor], Tensor]
    ) -> None:
        self.attachment, self.layer, self.edit = attachment, layer, edit

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self._of_now(module, inputs, output)
        if not self.attachment.traced:
            # whose call it is must be asked in every run: the graph breaks here
            return uncompiled(self._of_now, module, inputs, output)
        if not self.attachment.enabled:
            return None
        return _replaced(output, self.edit(_states(output)))

    def _of_now(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        attachment = self.attachment
        if module is not self.layer:
            if getattr(module, "_is_replica", False):
                raise DiveError(
                    "torch.nn.DataParallel runs copies of the layers, which nobody steers: give it "
                    "the model without an adapter, or run a process a GPU"
                )
            return None  # a copy that shares our hooks
        work, hidden = attachment.site.current(), _states(output)
        if work is not attachment or not attachment.enabled:
            if work is None or work is attachment:
                attachment.site.learns_bare(inputs, hidden)
            return None
        steered = self.edit(hidden)
        attachment.calls += 1
        attachment.learns(inputs, steered)
        return _replaced(output, steered)

    def __reduce__(self) -> Any:
        return as_no_hook, ()


def _states(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _replaced(output: Any, steered: Tensor) -> Any:
    return (steered, *output[1:]) if isinstance(output, tuple) else steered


def steer(backbone_or_model: Any, adapter: SteeringAdapter | str | Path) -> Attachment:
    """Attaches `adapter` (or what its folder holds); use it in a `with`, or call `.detach()` on
    what is returned.

    In a `with` it steers the thread (or asyncio task) that entered it, and only that; without, all
    threads that have no `with` of their own, as PEFT's adapters do. A thread that is started inside
    a `with` has to be given its context (`contextvars.copy_context().run`).

    The adapter's parameters move to the devices of their layers. DiveError where the adapter
    belongs to another backbone, or this thread or task has attached another one already. One that
    another has attached for all threads is no hindrance: the own one goes before it.
    """
    return Attachment(unwrap(backbone_or_model), as_adapter(adapter, "steer: adapter"))


def attachment_of(model: Any) -> Attachment | None:
    """What is attached to the model now, for this thread or task."""
    found: Any = at_work(decoder_layers(model)[0], tell=False)
    return found


def attached_here(model: Any) -> bool:
    """Whether this thread or task has attached something: what others have for all is not meant."""
    return in_the_way(decoder_layers(model)[0]) is not None


def first_layer(model: Any) -> nn.Module | None:
    """By which a model is known to `scope`; None where its decoder's layers are not found."""
    try:
        return decoder_layers(model)[0]
    except DiveError:
        return None


def unsteered(model: Any) -> Any:
    """A context in which the model's forwards are its own, whatever is attached. Only for this
    thread, and not to be held over a `yield` of a generator."""
    return scope(first_layer(model), None)


def each_of_its_own(model: Any, results: Iterator[T]) -> Iterator[T]:
    """The same results; what makes each has nothing of a call of dive's around it.

    Closing it closes `results`.
    """
    return iterate_within(partial(call_of_its_own, first_layer(model)), results)
