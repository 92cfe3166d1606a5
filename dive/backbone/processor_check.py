"""Checks that a processor's settings fit the model: none is missing, and an image has as many
tokens as the model makes features.

A checkpoint keeps the two in different files, and neither transformers nor the hub compares them.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Container
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from dive.backbone.image_check import check_pixels
from dive.backbone.image_special_tokens import image_special_token_ids
from dive.backbone.structure import computes_on, last_hidden_state, unwrap
from dive.errors import DiveError
from dive.errors.checks import is_whole

log = logging.getLogger("dive")

# errors of a vision tower for pixels that do not fit it
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError)
_SIZES = ("crop_size", "size")
# where images keep their shape, their numbers of tokens follow from these: one image's may be right
# by chance and the next one's wrong
_BY_SHAPE = (
    "patch_size",
    "spatial_merge_size",
    "image_processor.patch_size",
    "image_processor.merge_size",
    "image_processor.temporal_patch_size",
)
# the model reads these from its own config, so another value in the processor cannot work
_THE_MODELS = ("image_processor.image_grid_pinpoints", "vision_aspect_ratio")

_warned: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
_checked: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def with_model_settings(processor: Any, backbone_or_model: Any) -> Any:
    """The processor with the settings that it lacks, as the model's config implies them.

    Older LLaVA checkpoints leave theirs out. They are logged once. A processor that lacks something
    is copied: the caller's own stays as it is.
    """
    model: Any = unwrap(backbone_or_model)
    taken: dict[str, Any] = {}
    implied = _implied(processor, model)
    for name, wanted in implied.items():
        owner, own = _owner(processor, name)
        if wanted is None or own in _SIZES or not hasattr(owner, own):
            continue
        value = getattr(owner, own)
        if value in (None, "") or (value != wanted and _is_default(processor, name)):
            taken[name] = wanted
    counted = "num_additional_image_tokens"
    if taken and getattr(processor, counted, None) == 0 and implied.get(counted):
        taken[counted] = implied[counted]  # its default is 0, so 0 may mean that it was never set
    for name in _THE_MODELS:
        owner, own = _owner(processor, name)
        wanted = getattr(model.config, own, None)
        if wanted is None or not hasattr(owner, own):
            continue
        if _listed(getattr(owner, own)) != _listed(wanted):
            taken[name] = wanted
    taken |= image_special_token_ids(processor, getattr(model.config, "image_token_id", None))
    if not taken:
        return processor
    line = f"{type(processor).__name__}: not set or not the model's, and taken from the model's "
    line += "config: " + ", ".join(f"{name} = {value!r}" for name, value in taken.items())
    warned = _warned.setdefault(processor, set())
    if line not in warned:
        warned.add(line)
        log.warning("%s", line)
    processor = copy.copy(processor)
    processor.image_processor = copy.copy(processor.image_processor)
    for name, value in taken.items():
        owner, own = _owner(processor, name)
        setattr(owner, own, value)
    return processor


def check_types(processor: Any, backbone_or_model: Any) -> None:
    """Raise DiveError where a setting that the model's config implies is no whole number >= 0."""
    for setting, wanted in _implied(processor, unwrap(backbone_or_model)).items():
        value = _setting(processor, setting)
        sized = setting.removeprefix("image_processor.") in _SIZES
        if sized or value is None or not isinstance(wanted, int):
            continue
        if not is_whole(value) or value < 0:
            raise DiveError(
                f"{type(processor).__name__}: {setting} is {value!r}, want a whole number, and "
                f"the model's config implies {wanted}"
            )


def _listed(value: Any) -> Any:
    """The value with tuples as lists, at every depth."""
    return [_listed(one) for one in value] if isinstance(value, (list, tuple)) else value


def misfits(
    processor: Any, backbone_or_model: Any, among: Container[str] | None = None
) -> list[str]:
    """Settings that are not what the model's config implies: "patch_size is 16 (... 14)".

    among: the settings to compare; None for all.
    """
    found = []
    token = getattr(unwrap(backbone_or_model).config, "image_token_id", None)
    if among is None and token is not None and _token(processor, token) is None:
        found.append(f"the tokenizer has no token {token}, which is the model's image token")
    for name, wanted in _implied(processor, unwrap(backbone_or_model)).items():
        if among is not None and name not in among:
            continue
        value = _setting(processor, name)
        if wanted is not None and value is not None and value != wanted:
            found.append(f"{name} is {value!r} and the model's config implies {wanted!r}")
    return found


def _is_default(processor: Any, name: str) -> bool:
    """Return whether a setting that follows an image's shape has the class's own default."""
    if name not in _BY_SHAPE:
        return False
    parameter = inspect.signature(type(processor).__init__).parameters.get(name)
    return parameter is not None and parameter.default == getattr(processor, name)


@torch.no_grad()
def check_features(
    backbone_or_model: Any,
    processor: Any,
    settings: dict[str, Any],
    example: Callable[[], tuple[dict[str, Tensor], dict[str, Tensor], int]],
) -> None:
    """Raise DiveError where no image can pass the processor, or the model cannot use the result.

    The model must make as many features of an image as it has tokens.

    example: returns a prompt with one image, those of its inputs that are the image's, and its
    number of image tokens. Called once per state of the settings. The vision tower runs on it only
    where it does not agree with the model's config.
    """
    model: Any = unwrap(backbone_or_model)
    key = repr([_state(processor), settings, processor.image_processor.to_dict()])
    if key in _checked.setdefault(model, set()):
        return
    get = getattr(model.base_model, "get_image_features", None)
    if get is None or model.base_model is model:
        return
    name = type(processor).__name__
    try:
        batch, images, tokens = example()
    except DiveError as error:
        more = misfits(processor, model)
        if not more and not getattr(processor.image_processor, "do_resize", True):
            return  # other images may have the right size
        why = "; ".join([*more, *_usual_class(processor, model)])
        raise DiveError(
            f"{name} cannot be used with this model: {f'{why} ({error})' if why else error}"
        ) from error
    check_pixels(processor, batch, stacklevel=6)
    own = not _usual_class(processor, model)
    if own and not misfits(processor, model) and _expected(model, batch, tokens):
        _checked[model].add(key)
        return
    if computes_on(model.get_input_embeddings()).type == "meta":
        return  # without weights (dive/backbone/without_weights.py) no features can be made
    features: int | None = None
    refusal = ""
    try:
        output: Any = get(**images, return_dict=True)
        parts = output.get("pooler_output") if hasattr(output, "get") else output
        if parts is not None and all(isinstance(part, Tensor) for part in parts):
            features = sum(part.numel() // part.shape[-1] for part in parts)
    except torch.OutOfMemoryError:
        raise
    except _REFUSALS as error:
        refusal = " ".join(str(error).split())
    if features != tokens or not own:
        try:
            # a model may insert another number of features than its tower makes
            last_hidden_state(model, batch)
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as error:
            more = [*misfits(processor, model), *_usual_class(processor, model)]
            what = (
                f"the model refuses what {name} makes of an image ({refusal or error})"
                if features in (None, tokens)
                else f"{name} puts {tokens} image tokens into the prompt for an image of which "
                f"the model makes {features} features"
            )
            raise DiveError(
                f"{what}: " + ("; ".join(more) or "its settings do not fit the model's config")
            ) from error
    if hasattr(processor, "spatial_merge_size") or hasattr(processor.image_processor, "merge_size"):
        more = misfits(processor, model, _BY_SHAPE)
        if more:
            raise DiveError(
                f"{name} cannot be used with this model, whose image tokens follow an image's "
                f"shape: {'; '.join(more)}"
            )
    _checked[model].add(key)


def _state(processor: Any) -> list[Any]:
    """All plain settings of a processor, and the identity of its tokenizer."""
    kinds = (str, int, float, bool, list, tuple, type(None))
    plain = {name: one for name, one in vars(processor).items() if isinstance(one, kinds)}
    return [type(processor).__name__, plain, id(processor.tokenizer)]


def _usual_class(processor: Any, model: Any) -> list[str]:
    """The class of processor that this model has, in words, where it is known and another one."""
    wanted = PROCESSOR_MAPPING_NAMES.get(model.config.model_type)
    if wanted is None or any(one.__name__ == wanted for one in type(processor).__mro__):
        return []
    return [f"the processor of this model_type ({model.config.model_type}) is {wanted}"]


def _expected(model: Any, batch: dict[str, Tensor], tokens: int) -> bool:
    """Return whether pixels and image tokens are as many as the model's config says."""
    config = model.config
    vision = getattr(config, "vision_config", None)
    patch, size = _edge(vision, "patch_size"), _edge(vision, "image_size")
    grids = batch.get("image_grid_thw")
    merge = getattr(vision, "spatial_merge_size", None)
    if grids is not None and isinstance(merge, int):
        return int(grids.prod(-1).sum()) // merge**2 == tokens
    pixels = batch.get("pixel_values")
    if pixels is None or patch is None or size is None or pixels.dim() < 4:
        return False
    if "image_sizes" in batch and pixels.dim() == 4 and pixels.shape[0] == 1:
        # the Pixtral line keeps an image's shape, and closes each row of its tokens
        merge, (height, width) = getattr(config, "spatial_merge_size", None) or 1, pixels.shape[-2:]
        return (height // (patch * merge)) * (width // (patch * merge)) == tokens
    if pixels.shape[-2:] != (size, size):
        return False
    strategy = getattr(config, "vision_feature_select_strategy", None)
    grid = (size // patch) ** 2
    if strategy is not None and pixels.dim() == 4 and config.model_type == "llava":
        more = _additional(model, grid)
        return more is not None and grid + more - (strategy == "default") == tokens
    each = _each(config, grid)
    return strategy is not None or (each is not None and tokens > 0 and tokens % each == 0)


def _each(config: Any, grid: int | None) -> int | None:
    """Image tokens per tile, where the config has the number."""
    each, scale = (
        getattr(config, "mm_tokens_per_image", None),
        getattr(config, "scale_factor", None),
    )
    if each is not None or grid is None:
        return each
    if isinstance(scale, int):
        return grid // scale**2  # the Idefics 3 line
    if "paligemma" in str(config.model_type):
        return grid
    return getattr(config, "image_seq_length", None)


def _owner(processor: Any, name: str) -> tuple[Any, str]:
    owner, _, own = name.rpartition(".")
    return (processor.image_processor if owner else processor), own


def _setting(processor: Any, name: str) -> Any:
    owner, own = _owner(processor, name)
    value = getattr(owner, own, None)
    if own == "image_token" and value is not None:
        return str(value)
    if own in _SIZES and value is not None:
        read = dict(value)
        edges = [read.get("height"), read.get("width")]
        if None in edges:
            return None
        return edges[0] if edges[0] == edges[1] else edges
    return value


def _implied(processor: Any, model: Any) -> dict[str, Any]:
    """Settings of the processor and its "image_processor." as the model's config implies them."""
    config = model.config
    vision = getattr(config, "vision_config", None)
    images = getattr(processor, "image_processor", None)
    if vision is None or images is None:
        return {}
    patch, size = _edge(vision, "patch_size"), _edge(vision, "image_size")
    grid = None if patch is None or size is None else (size // patch) ** 2
    merge = getattr(vision, "spatial_merge_size", None) or getattr(
        config, "spatial_merge_size", None
    )
    strategy = getattr(config, "vision_feature_select_strategy", None)
    found: dict[str, Any] = {}
    token = getattr(config, "image_token_id", None)
    # in the Gemma 3 line the placeholder in a prompt is another token than those of images
    if (
        token is not None
        and hasattr(processor, "image_token")
        and not hasattr(processor, "boi_token")
    ):
        found["image_token"] = _token(processor, token)
    if hasattr(processor, "vision_feature_select_strategy"):
        found["vision_feature_select_strategy"] = strategy
        if hasattr(processor, "num_additional_image_tokens"):
            found["patch_size"] = patch
            found["num_additional_image_tokens"] = _additional(model, grid)
        if hasattr(processor, "num_image_tokens"):
            found["num_image_tokens"] = grid
    if hasattr(processor, "spatial_merge_size"):
        found |= {"patch_size": patch, "spatial_merge_size": merge}
    if hasattr(images, "merge_size"):
        found |= {
            "image_processor.merge_size": merge,
            "image_processor.patch_size": patch,
            "image_processor.temporal_patch_size": getattr(vision, "temporal_patch_size", None),
        }
    else:
        cropped = "crop_size" if getattr(images, "do_center_crop", False) else "size"
        found[f"image_processor.{cropped}"] = size
    each = None if "vision_feature_select_strategy" in found else _each(config, grid)
    for name in ("image_seq_length", "image_seq_len"):
        if hasattr(processor, name):
            found[name] = each
    return found


def _token(processor: Any, index: int) -> str | None:
    token = processor.tokenizer.convert_ids_to_tokens(index) if index >= 0 else None
    return None if token is None else str(token)


def _edge(vision: Any, name: str) -> int | None:
    value = getattr(vision, name, None)
    if isinstance(value, (list, tuple)):
        value = value[0] if len({*value}) == 1 else None
    return value if isinstance(value, int) and value > 0 else None


def _additional(model: Any, grid: int | None) -> int | None:
    """Tokens of the vision tower in addition to those of the patches: 1 for a CLS token."""
    for name, module in model.named_modules():
        positions = getattr(module, "num_positions", None)
        if "vision" in name and isinstance(positions, int) and grid is not None:
            return positions - grid if 0 <= positions - grid <= 8 else None
    return None
