"""Tiny backbones whose processors are set to something else than they were shipped with."""

from tiny_features import needs
from tiny_more import FAMILIES

import dive


def writer(tmp_path_factory):
    """A family's name to its folder, written once."""
    made = {}

    def folder(name):
        needs(name)
        if name not in made:
            made[name] = FAMILIES[name](tmp_path_factory.mktemp("family") / "model")
        return made[name]

    return folder


def changed(folders, family, settings):
    """The family's backbone with these settings: the processor's, or "image_processor."- and
    "tokenizer."-settings."""
    backbone = dive.load_backbone(folders(family))
    for name, value in settings.items():
        part, _, own = name.rpartition(".")
        setattr(getattr(backbone.processor, part) if part else backbone.processor, own, value)
    return backbone
