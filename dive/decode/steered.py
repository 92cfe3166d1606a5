"""Adapters in effect on a model's own forwards during one call: a prefill, or all of transformers.

What the engine decodes it steers itself, with what `dive.decode.binding` packs for it.
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
    """Puts adapters into effect inside, for this thread or task alone.

    Yields the adapters in effect, one for all samples or one per sample.

    model: without wrappers. adapters: one for all samples, which takes precedence over what others
        have attached for all threads; one or None per sample; or None: what the caller has
        attached, if anything.
    attached: hooks that stay from call to call (`attached_for`); without them, hooks for this call
        alone, of adapters that have been checked.
    Not to be held over a `yield` of a generator, whose next step may run in another context.

    Raises:
        DiveError: this thread or task has attached another adapter.
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
    alone: Any = nullcontext()  # adapters per sample refuse another attachment
    if isinstance(adapters, SteeringAdapter):
        found = in_the_way(first, scoped=True)
        if found is not None and found.adapters != (adapters,):
            raise DiveError("another adapter than the session's is attached to the model")
        alone = scope(first, None)  # instead of what is attached already
    with alone, _hooks(model, adapters, check=False) as own, own.working():
        yield own.adapters


@contextmanager
def attached_for(model: Any, adapters: PerSample) -> Iterator[Attachment | None]:
    """Hooks for many calls of `steered`, with some of these adapters in each.

    Attached once, as attaching discards compiled code. Yields None where there is no adapter.
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
    """An attachment inside, in effect only within its `working`."""
    kind: Any = Attachment if isinstance(adapters, SteeringAdapter) else PerSampleAttachment
    attachment: Attachment = kind(model, adapters, check=check, scoped=True)
    try:
        yield attachment
    finally:
        attachment.detach()
