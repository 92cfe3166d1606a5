"""Projected image features, computed once a study: after the first epoch no vision tower runs.

Nothing between the pixels and the decoder is trained, so an image's features are the same in every
epoch, for student and teacher. transformers takes them in place of pixels (`mm_encoder_outputs`),
and merges them as it does its own: deepstack layers and masks by token types included.
"""

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dive.data.study import Study
from dive.prompting import Prompter, sequence_names
from dive.structure import last_hidden_state, unwrap

log = logging.getLogger(__name__)

ROOM = 4 << 30  # bytes of features that are kept, in main memory
# what models read of a vision tower's output
_READ = ("pooler_output", "deepstack_features")


def image_cache(prompter: Prompter, study: Study) -> "ImageCache | None":
    """A cache that was proved on `study`: states with its features are those with its pixels, bit
    for bit. None, and a warning that says why, for a backbone where there cannot be one."""
    model = unwrap(prompter.backbone)
    base: Any = model.base_model
    name = type(base).__name__
    if not study.images:
        return None
    if "mm_encoder_outputs" not in inspect.signature(base.forward).parameters:
        reason = f"{name} of this transformers takes no features in place of pixels (5.23 does)"
    elif not hasattr(base, "get_image_features"):
        reason = f"{name} has no get_image_features"
    else:
        cache = ImageCache(prompter)
        inputs = prompter.encode(study)
        with torch.no_grad():
            wanted = last_hidden_state(model, prompter.place(inputs))
            filled = cache.fill(prompter.place(inputs), [study])
            if "mm_encoder_outputs" in filled and torch.equal(
                last_hidden_state(model, filled), wanted
            ):
                return cache
        reason = f"{name} computes something else from features than from pixels"
    log.warning("cache_images: %s; the vision tower runs in every step", reason)
    return None


class ImageCache:
    """Features by study, as `get_image_features` of the model makes them from a study's images.

    A `Study` names its files, and processor and weights stay the same while the cache lives, so it
    is the key. What does not fit into `room` bytes is computed every time.
    """

    def __init__(self, prompter: Prompter, room: int = ROOM) -> None:
        self._prompter = prompter
        self._room = room
        self._kept: dict[Study, dict[str, Any]] = {}
        self._output: Any = None  # the class of the tower's output
        self._full = self._company = False  # said once each

    def fill(self, inputs: dict[str, Tensor], studies: Sequence[Study]) -> dict[str, Any]:
        """Model inputs with features in place of the pixels of `studies`, which `inputs` shows in
        this order. Unchanged where the features would not fit: what LLaVA-OneVision makes of an
        image depends on whether it is alone in its prompt."""
        if not any(name.startswith("pixel") for name in inputs):
            return inputs
        each = [self._of(study) for study in studies if study.images]
        joined = {name: _join([one[name] for one in each]) for name in each[0]}
        if _rows(joined["pooler_output"]) != self._prompter.count_image_tokens(inputs):
            if not self._company:
                self._company = True
                log.warning(
                    "cache_images: this model looks at an image by itself in another way than at "
                    "several, so features are used only for prompts of one study"
                )
            return inputs
        rest = {name: value for name, value in inputs.items() if not name.startswith("pixel")}
        return {**rest, "mm_encoder_outputs": {"image": self._output(**joined)}}

    def _of(self, study: Study) -> dict[str, Any]:
        device = self._prompter.backbone.device
        kept = self._kept.get(study)
        if kept is not None:
            return _map(kept, lambda tensor: tensor.to(device))
        features = self._run(study)
        sizes: list[int] = []
        stored = _map(features, lambda tensor: tensor.cpu())
        _map(stored, lambda tensor: sizes.append(tensor.numel() * tensor.element_size()))
        if sum(sizes) <= self._room:
            self._room -= sum(sizes)
            self._kept[study] = stored
        elif not self._full:
            self._full = True
            log.warning(
                "cache_images: the features of %d studies fill the cache; the vision tower runs "
                "for the others",
                len(self._kept),
            )
        return features

    @torch.no_grad()
    def _run(self, study: Study) -> dict[str, Any]:
        encoded = self._prompter.encode_any_length(study)
        sequences = set(sequence_names(encoded))
        images = {name: value for name, value in encoded.items() if name not in sequences}
        base: Any = unwrap(self._prompter.backbone).base_model
        takes = inspect.signature(base.get_image_features).parameters
        images = {name: value for name, value in images.items() if name in takes}
        output = base.get_image_features(**self._prompter.place(images), return_dict=True)
        self._output = type(output)
        return {name: output[name] for name in _READ if output.get(name) is not None}


def _join(values: list[Any]) -> Any:
    """Features of several studies as those of one prompt: images one after the other."""
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    if all(isinstance(one, Tensor) for one in values[0]):
        return [tensor for one in values for tensor in one]
    return [_join(list(layer)) for layer in zip(*values, strict=True)]  # deepstack: a layer each


def _rows(features: Any) -> int:
    return sum(tensor.numel() // tensor.shape[-1] for tensor in features)


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _map(one, change) for name, one in value.items()}
    return [_map(one, change) for one in value]
