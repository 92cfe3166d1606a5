"""A backbone's structure without its weights, for what only its names and shapes decide."""

from os import PathLike
from typing import Any

import torch
from transformers import AutoConfig

from dive.backbone.load import auto_class, reported, source_of


def model_without_weights(path: str | PathLike[str], revision: str | None = None) -> Any:
    """The model of a folder or hub id on the meta device: config.json is read, weights are not.

    Raises:
        DiveError: no such folder, or a model that transformers cannot build.
    """
    source = source_of(path)
    with reported(source, "config"):
        config = AutoConfig.from_pretrained(source, revision=revision)
    with reported(source, "model"), torch.device("meta"):
        model = auto_class(source, config).from_config(config)
    model.config._name_or_path = str(source)
    return model
