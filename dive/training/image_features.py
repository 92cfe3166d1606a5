"""Projected image features, computed once per study: after the first epoch no vision tower runs.

Nothing between the pixels and the decoder is trained, so an image's features are the same in every
epoch, for student and teacher, and in the next training. transformers takes them in place of pixels
(`mm_encoder_outputs`), and merges them as it does its own: deepstack layers and masks by token
types included. dive/training/feature_store.py keeps them on disk.
"""

import inspect
import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from dive.backbone.structure import last_hidden_state, unwrap
from dive.data.study import Study
from dive.prompting.batch import sequence_names
from dive.prompting.prompter import Prompter
from dive.training.feature_store import FeatureStore, key_of

log = logging.getLogger(__name__)

CACHE_BYTES = 4 << 30  # of features that are kept in main memory


@dataclass
class Features(ModelOutput):
    """The fields of a vision tower's output that models read."""

    pooler_output: Any = None
    deepstack_features: Any = None


def image_cache(
    prompter: Prompter, study: Study, folder: str | Path | None = None
) -> "ImageCache | None":
    """A cache that was verified on `study`: hidden states with its features are those with its
    pixels, bit for bit. None, with a warning that gives the reason, for a backbone without one.

    folder: where features are kept for later trainings, too. Those of an earlier training are used,
    and so is its verification.

    Raises:
        DiveError: the folder cannot be written.
    """
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
        store = None if folder is None else FeatureStore(folder, prompter)
        if store is not None and store.proved:
            return ImageCache(prompter, store=store)
        cache = ImageCache(prompter)
        inputs = prompter.encode(study)
        with torch.no_grad():
            wanted = last_hidden_state(model, prompter.to_device(inputs))
            filled = cache.fill(prompter.to_device(inputs), [study])
            if "mm_encoder_outputs" in filled and torch.equal(
                last_hidden_state(model, filled), wanted
            ):
                if store is not None:
                    store.prove()
                return ImageCache(prompter, store=store) if store is not None else cache
        reason = f"{name} computes something else from features than from pixels"
    log.warning("cache_images: %s; the vision tower runs in every step", reason)
    return None


class ImageCache:
    """The features of studies, as the model's `get_image_features` computes them.

    What does not fit into `capacity` bytes of main memory is read from the store, or computed,
    every time.
    """

    def __init__(
        self, prompter: Prompter, capacity: int = CACHE_BYTES, store: FeatureStore | None = None
    ) -> None:
        self._prompter = prompter
        self._bytes_left = capacity
        self.store = store
        self._kept: dict[Hashable, tuple[Study, dict[str, Any]]] = {}
        self._keys: dict[Hashable, tuple[Study, str]] = {}  # in the store
        self._full = self._company = False  # whether the warning was given

    def holds(self, study: Study) -> bool:
        """Whether the features of `study` are in memory."""
        return _name(study) in self._kept

    def fill(
        self,
        inputs: dict[str, Tensor],
        studies: Sequence[Study],
        own: Sequence[Mapping[str, Tensor] | None] | None = None,
    ) -> dict[str, Any]:
        """Model inputs with features in place of the pixels of `studies`, which `inputs` shows in
        this order. Unchanged where the features would not fit: LLaVA-OneVision encodes an image
        differently when it is alone in its prompt.

        own: each study's own encoded prompt, where it is known; else its images are read.
        """
        if not any(study.images for study in studies):
            return inputs
        prompts = [None] * len(studies) if own is None else own
        pairs = zip(studies, prompts, strict=True)
        each = [self._of(study, prompt) for study, prompt in pairs if study.images]
        joined = {name: _join([one[name] for one in each]) for name in each[0]}
        if _count_vectors(joined["pooler_output"]) != self._prompter.count_image_tokens(inputs):
            if not self._company:
                self._company = True
                log.warning(
                    "cache_images: this model encodes an image by itself in another way than "
                    "several, so features are used only for prompts of one study"
                )
            return inputs
        rest = {name: value for name, value in inputs.items() if not name.startswith("pixel")}
        return {**rest, "mm_encoder_outputs": {"image": Features(**joined)}}

    def _of(self, study: Study, prompt: Mapping[str, Tensor] | None) -> dict[str, Any]:
        device = self._prompter.backbone.device
        name = _name(study)
        kept = self._kept.get(name)
        if kept is not None:
            return _map(kept[1], lambda tensor: tensor.to(device))
        features = self._stored_or_computed(study, name, prompt)
        sizes: list[int] = []
        in_memory = _map(features, lambda tensor: tensor.cpu())
        _map(in_memory, lambda tensor: sizes.append(tensor.numel() * tensor.element_size()))
        if sum(sizes) <= self._bytes_left:
            self._bytes_left -= sum(sizes)
            self._kept[name] = study, in_memory
        elif not self._full:
            self._full = True
            log.warning(
                "cache_images: the features of %d studies fill the cache; %s for the others",
                len(self._kept),
                "the vision tower runs" if self.store is None else "they are read from the disk",
            )
        return _map(features, lambda tensor: tensor.to(device))

    def _stored_or_computed(
        self, study: Study, name: Hashable, prompt: Mapping[str, Tensor] | None
    ) -> dict[str, Any]:
        if self.store is None:
            return self._compute(study, prompt)
        if name not in self._keys:
            self._keys[name] = study, key_of(study)
        key = self._keys[name][1]
        features = self.store.get(key)
        if features is None:
            features = self._compute(study, prompt)
            self.store.put(key, _map(features, lambda tensor: tensor.cpu()))
        return features

    @torch.no_grad()
    def _compute(self, study: Study, prompt: Mapping[str, Tensor] | None) -> dict[str, Any]:
        if prompt is None or not has_pixels(prompt):
            encoded = self._prompter.encode_any_length(study)
        else:
            encoded = dict(prompt)
        sequences = set(sequence_names(encoded))
        images = {name: value for name, value in encoded.items() if name not in sequences}
        base: Any = unwrap(self._prompter.backbone).base_model
        takes = inspect.signature(base.get_image_features).parameters
        images = {name: value for name, value in images.items() if name in takes}
        output = base.get_image_features(**self._prompter.to_device(images), return_dict=True)
        read = Features().__dataclass_fields__
        return {name: output[name] for name in read if output.get(name) is not None}


def has_pixels(inputs: Iterable[str]) -> bool:
    """Whether pixels are among these model inputs, and not only facts about images."""
    return any(name.startswith("pixel") for name in inputs)


def _name(study: Study) -> Hashable:
    # an image in memory is identified by its address, which is unique while its study lives
    return tuple(one if isinstance(one, Path) else id(one) for one in study.images)


def _join(values: list[Any]) -> Any:
    """The features of several studies as those of one prompt, image after image."""
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    if all(isinstance(one, Tensor) for one in values[0]):
        return [tensor for one in values for tensor in one]
    return [
        _join(list(layer)) for layer in zip(*values, strict=True)
    ]  # deepstack: one entry per layer


def _count_vectors(features: Any) -> int:
    return sum(tensor.numel() // tensor.shape[-1] for tensor in features)


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _map(one, change) for name, one in value.items()}
    return [_map(one, change) for one in value]
