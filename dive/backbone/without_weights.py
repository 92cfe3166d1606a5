"""A backbone without its weights, for what its names, shapes and settings decide: prompts, say."""

from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from dive.backbone.config_check import check_settings
from dive.backbone.load import Backbone, auto_class, processor_of, reported, source_of
from dive.backbone.processor_check import with_model_settings


@dataclass
class WeightlessBackbone(Backbone):
    """A `Backbone` whose model has the structure and settings of the real one, and no numbers.

    It makes prompts and answers questions about the model; a forward fails. Inputs stay on the CPU.
    """

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


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


def load_without_weights(
    path: str | PathLike[str], revision: str | None = None
) -> WeightlessBackbone:
    """The processor, configuration and generation settings of a backbone in a folder or on the hub.

    No file of weights is read: an adapter's fingerprint of weights counts as unknown against it.

    Raises:
        DiveError: no such folder, an unknown or unsuitable model, a vision-language model without
            its processor files, settings that cannot be used.
    """
    source = source_of(path)
    model = model_without_weights(source, revision)
    shared: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    with reported(source, "generation_config"):
        try:
            model.generation_config = GenerationConfig.from_pretrained(source, **shared)
        except OSError:  # as transformers does for a model without this file
            model.generation_config = GenerationConfig.from_pretrained(
                source, config_file_name="config.json", _from_model_config=True, **shared
            )
    model.eval().requires_grad_(False)
    processor = processor_of(source, model.config, auto_class(source, model.config), shared)
    check_settings(source, model, getattr(processor, "tokenizer", processor))
    if getattr(processor, "image_processor", None) is not None:
        processor = with_model_settings(processor, model)
    return WeightlessBackbone(model, processor)
