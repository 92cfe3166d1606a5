"""The backbone that a caller gave: `Backbone`, a path or hub id, or a model with its processor."""

from dataclasses import replace
from typing import Any

from dive.backbone.load import Backbone, load_backbone
from dive.backbone.structure import unwrap
from dive.errors import DiveError, checks


def as_backbone(given: Any, processor: Any = None) -> Backbone:
    """A `Backbone` of what a caller gave: one, a path or hub id, or a model with its processor.

    Its model is the one that computes, without the wrappers around it.
    """
    if checks.names_a_place(given):
        given = load_backbone(given)
    if isinstance(given, Backbone):
        processor = given.processor if processor is None else processor
    elif processor is None:
        raise DiveError(
            f"got a bare {type(given).__name__}; wants a Backbone from dive.load_backbone, "
            "or processor= too"
        )
    if checks.names_a_place(processor):
        raise DiveError(
            f"processor is {str(processor)!r}; wants a processor or tokenizer: load_backbone of a "
            "folder has both, and transformers' AutoProcessor.from_pretrained reads one"
        )
    model = unwrap(given)
    if isinstance(given, Backbone):
        return replace(given, model=model, processor=processor)
    return Backbone(model, processor)
