"""The frozen model: loaded with its processor, inspected, and never changed.

`structure` finds decoder, layers and head in a model of any family.
"""

from typing import TYPE_CHECKING

from dive import face

if TYPE_CHECKING:
    from dive.backbone.load import Backbone as Backbone
    from dive.backbone.load import load_backbone as load_backbone
    from dive.backbone.load import load_tokenizer as load_tokenizer

__all__ = ["Backbone", "load_backbone", "load_tokenizer"]

# `load` imports transformers' auto classes, which `structure` does without
__getattr__ = face(__name__, dict.fromkeys(__all__, "load"))
