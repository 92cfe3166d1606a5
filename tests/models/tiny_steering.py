"""Adapters that do something, and inputs for every tiny backbone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from dive.adapter.adapter import SteeringAdapter
from dive.adapter.config import SteeringConfig
from dive.backbone.load import Backbone
from dive.data import Study
from dive.prompting.prompter import Prompter


def randomised(backbone, seed: int = 1, strength: float = 1.0, **settings) -> SteeringAdapter:
    """As if trained: every tensor has values that matter, and logits move visibly."""
    torch.manual_seed(seed)
    adapter = SteeringAdapter(SteeringConfig(**{"rank": 4, **settings}), backbone)
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.down_bias.normal_()
            layer.up.normal_(std=strength)
            layer.static.normal_(std=strength)
            layer.scale.fill_(0.3)
            layer.sigma.fill_(1.5)
    return adapter


@contextmanager
def steered_layers(adapter: SteeringAdapter) -> Iterator[list[str]]:
    """The layers whose output the adapter has edited inside, once for each edit."""
    steered: list[str] = []
    handles = [
        layer.register_forward_hook(lambda *_, index=index: steered.append(index))
        for index, layer in adapter.layers.items()
    ]
    try:
        yield steered
    finally:
        for handle in handles:
            handle.remove()


def for_backbone(backbone: Backbone, studies: list[Study]) -> list[Study]:
    """The same studies; without their images where the backbone is a text model."""
    if backbone.image_token_id is not None:
        return list(studies)
    return [replace(study, images=()) for study in studies]


def prompts(backbone: Backbone, studies: list[Study], side: str = "left") -> dict[str, Tensor]:
    """One batch of prompts (images included) for the model's forward."""
    prompter = Prompter(backbone)
    batch = [prompter.encode(study) for study in for_backbone(backbone, studies)]
    return prompter.to_device(prompter.collate(batch, side=side))


@torch.no_grad()
def logits(model, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch, use_cache=False).logits


def fingerprint(model) -> dict:
    """What an attachment could leave behind: hooks, attributes and parameters of every module."""
    return {
        name: (
            tuple(map(id, module._forward_hooks.values())),
            tuple(map(id, module._forward_pre_hooks.values())),
            tuple(module._forward_hooks_always_called),
            type(module),
            module.training,
            {
                key: id(value)
                for key, value in vars(module).items()
                # rope_deltas is what a Qwen-VL model notes down at every forward of its own
                if not key.startswith("_") and key != "rope_deltas"
            },
            tuple(map(id, module._parameters.values())),
        )
        for name, module in model.named_modules()
    }
