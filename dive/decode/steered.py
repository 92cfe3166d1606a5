"""Adapters at work on a model's own forwards in one call: a prompt that is read, or transformers.

What the engine decodes it steers itself; what it is given to do so is `dive.decode.binding`'s.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from dive.adapter.adapter import SteeringAdapter
from dive.adapter.at_work import at_work, in_the_way, scope
from dive.adapter.attach import Attachment, PerSampleAttachment, first_layer
from dive.backbone.structure import decoder_layers
from dive.errors import DiveError

PerSample = Sequence[SteeringAdapter | None]


@contextmanager
def steered(
    model: Any, adapters: SteeringAdapter | PerSample | None, attached: Attachment | None = None
) -> Iterator[PerSample]:
    """These adapters at work inside, for this thread or task alone; yields one, or one per row.

    model: without wrappers. adapters: one for all rows, which goes before what others have attached
        for all threads; one or None per row; or None: what the caller has attached, if anything.
    attached: hooks that stay from call to call (`attached_for`); without them they come and go with
        this one, of adapters that have been checked.
    DiveError where this thread or task has attached another adapter. Not to be held over a `yield`
    of a generator, whose next step may run in another context.
    """
    if attached is not None:
        if isinstance(attached, PerSampleAttachment):
            attached.adapters = adapters  # type: ignore[assignment]
        with attached.working():
            yield attached.adapters
        return
    if adapters is None:
        layer = first_layer(model)
        found: Any = None if layer is None else at_work(layer)
        with scope(layer, found):
            yield (None,) if found is None or not found.enabled else found.adapters
        return
    first = decoder_layers(model)[0]
    alone: Any = nullcontext()  # an adapter per row refuses a second one
    if isinstance(adapters, SteeringAdapter):
        found = in_the_way(first, scoped=True)
        if found is not None and found.adapters != (adapters,):
            raise DiveError("another adapter than the session's is attached to the model")
        alone = scope(first, None)  # what is attached already may be switched off
    with alone, _hooks(model, adapters, check=False) as own, own.working():
        yield own.adapters


@contextmanager
def attached_for(model: Any, adapters: PerSample) -> Iterator[Attachment | None]:
    """What `steered` puts to work in call after call, with some of these adapters in each.

    Attached once, as attaching throws compiled code away. None where there is no adapter at all.
    """
    one = adapters[0]
    if all(adapter is None for adapter in adapters):
        yield None
        return
    for_all = one if all(adapter is one for adapter in adapters) else None
    with _hooks(model, (None,) if for_all is None else for_all) as attached:
        yield attached


@contextmanager
def _hooks(
    model: Any, adapters: SteeringAdapter | PerSample, check: bool = True
) -> Iterator[Attachment]:
    """Attached inside, and at work where it is asked to be."""
    kind: Any = Attachment if isinstance(adapters, SteeringAdapter) else PerSampleAttachment
    attachment: Attachment = kind(model, adapters, check=check, scoped=True)
    try:
        yield attachment
    finally:
        attachment.detach()
