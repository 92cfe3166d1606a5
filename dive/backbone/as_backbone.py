"""A `Backbone` from what a caller passes: one, a path or hub id, or a model with its processor."""

from dataclasses import replace
from typing import Any

from dive.backbone.load import Backbone, load_backbone
from dive.backbone.structure import unwrap
from dive.errors import DiveError, checks


def as_backbone(backbone_or_model: Any, processor: Any = None) -> Backbone:
    """A `Backbone` from a `Backbone`, a path or hub id, or a model with its processor.

    Its model is the one that computes, without the wrappers around it.
    """
    if checks.names_a_path(backbone_or_model):
        backbone_or_model = load_backbone(backbone_or_model)
    if isinstance(backbone_or_model, Backbone):
        processor = backbone_or_model.processor if processor is None else processor
    elif processor is None:
        raise DiveError(
            f"got a bare {type(backbone_or_model).__name__}, want a Backbone from "
            "dive.load_backbone, or processor= too"
        )
    if checks.names_a_path(processor):
        raise DiveError(
            f"processor is {str(processor)!r}, want a processor or tokenizer: load_backbone of a "
            "folder has both, and transformers' AutoProcessor.from_pretrained reads one"
        )
    model = unwrap(backbone_or_model)
    if isinstance(backbone_or_model, Backbone):
        return replace(backbone_or_model, model=model, processor=processor)
    return Backbone(model, processor)
