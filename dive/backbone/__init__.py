"""The frozen model: loaded with its processor, looked into, and never changed.

`structure` finds decoder, layers and head in a model of any family.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dive.backbone.load import Backbone as Backbone
    from dive.backbone.load import load_backbone as load_backbone
    from dive.backbone.load import load_tokenizer as load_tokenizer

__all__ = ["Backbone", "load_backbone", "load_tokenizer"]


def __getattr__(name: str) -> object:
    """`load` imports transformers' auto classes, so it is imported when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'dive.backbone' has no attribute {name!r}")
    from dive.backbone import load

    value = globals()[name] = getattr(load, name)
    return value
