"""Checks of an image processor's own settings: their types, whether they agree with each other, and
the pixels that they make.

None of this depends on the model. A setting that no image can pass is refused before a study is
read, so that it is not blamed on each study in turn.
"""

import contextlib
import enum
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dive.errors import DiveError

# a size has one of these
_EDGES = (
    ("height", "width"),
    ("shortest_edge",),
    ("longest_edge",),
    ("max_height", "max_width"),
)
_FILTERS = 6  # PIL's resampling filters are 0 to 5
# Normalised pixels of released models lie within about -2 and 3, those not normalised within 0 and
# 1; bytes that were never scaled down come out at hundreds.
_MAX_ABS, _MIN_RANGE = 20.0, 0.5
_VALUES = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def check_settings(processor: Any, stacklevel: int = 3) -> None:
    """Raise DiveError where a setting of the image processor has an unusable type or value.

    Warns where images are cut, or get a black frame.
    """
    images, name = processor.image_processor, type(processor).__name__
    sizes = {own: _size(images, own, name) for own in ("crop_size", "size")}
    resizes, crops = (_is_on(images, one) for one in ("do_resize", "do_center_crop"))
    if crops and not {"height", "width"} <= sizes["crop_size"].keys():
        raise _unfit(images, name, "crop_size", "a dict with height and width, for do_center_crop")
    longest = "max_image_size"
    if isinstance(_usual(images, longest), dict):  # in the Idefics line: the edge of a tile
        _whole_edges(images, longest, ("longest_edge",), name)
        if resizes and "longest_edge" not in sizes["size"]:
            raise _unfit(images, name, "size", f"a dict such as {_usual(images, 'size')}")
    if hasattr(processor, "spatial_merge_size") and not resizes:
        # in the Pixtral line resizing makes an image's edges multiples of a token's
        raise _unfit(images, name, "do_resize", "True")
    if resizes:
        _check_filter(images, name)
    for on, settings in (
        ("do_rescale", ("rescale_factor",)),
        ("do_normalize", ("image_mean", "image_std")),
    ):
        for setting in settings if _is_on(images, on) else ():
            _check_numbers(images, name, setting)
    for warning in _disagreements(images, sizes) if crops else ():
        warnings.warn(f"{name}: {warning}", stacklevel=stacklevel)
    if _usual(images, "do_normalize") is True and not _is_on(images, "do_normalize"):
        warnings.warn(
            f"{name}: image_processor.do_normalize is {images.do_normalize!r}, and it is on in "
            f"{type(images).__name__}: the model sees other pixels than it was trained on",
            stacklevel=stacklevel,
        )


def check_pixels(processor: Any, batch: dict[str, Tensor], stacklevel: int = 3) -> None:
    """Raise DiveError where the pixels of an image that is half black, half white are not finite.

    Warns where they are far from any that a model is trained on.
    """
    images, name = processor.image_processor, type(processor).__name__
    for tensor, value in batch.items():
        if not tensor.startswith("pixel") or not value.is_floating_point() or not value.numel():
            continue
        value = value.float()
        if not bool(torch.isfinite(value).all()):
            raise DiveError(f"{name} makes pixels that are not finite: {_scaling(images)}")
        low, high = value.min().item(), value.max().item()
        if max(-low, high) > _MAX_ABS or high - low < _MIN_RANGE:
            warnings.warn(
                f"{name} makes pixels from {low:.3g} to {high:.3g} of black and white, and models "
                f"are trained on such from about -2 to 3: {_scaling(images)}",
                stacklevel=stacklevel,
            )


def _size(images: Any, own: str, name: str) -> dict[str, int]:
    """A size's edges in pixels; {} where the image processor has none."""
    value = getattr(images, own, None)
    # the Qwen-VL line's sizes are areas, and both edges are read
    area = own == "size" and all(
        isinstance(getattr(images, one, None), int) for one in ("patch_size", "merge_size")
    )
    if value is None and not (own == "size" and (area or hasattr(type(images), "size"))):
        return {}
    return _whole_edges(images, own, ("shortest_edge", "longest_edge") if area else (), name)


def _whole_edges(images: Any, own: str, needed: tuple[str, ...], name: str) -> dict[str, int]:
    value: Any = getattr(images, own, None)
    edges: dict[str, Any] = {}
    with contextlib.suppress(TypeError, ValueError):
        edges = {edge: one for edge, one in dict(value).items() if one is not None}
    whole = all(
        isinstance(one, (int, np.integer)) and not isinstance(one, bool) and one > 0
        for one in edges.values()
    )
    choices = (needed,) if needed else _EDGES
    if whole and any(all(edge in edges for edge in one) for one in choices):
        return edges
    usual = _usual(images, own)
    wants = f"such as {usual}" if isinstance(usual, dict) else "of edges in pixels"
    raise _unfit(images, name, own, f"a dict {wants}")


def _check_filter(images: Any, name: str) -> None:
    value = getattr(images, "resample", 0)
    numbered = isinstance(value, int) and not isinstance(value, bool)
    # torchvision's filters are members of an enum; another name selects the bilinear one
    if (numbered and 0 <= value < _FILTERS) or (not numbered and isinstance(value, enum.Enum)):
        return
    usual = _usual(images, "resample")
    wants = "a filter of PIL by its number, 0 to 5"
    raise _unfit(images, name, "resample", wants if usual is None else f"{wants} (as {usual!r})")


def _check_numbers(images: Any, name: str, setting: str) -> None:
    """Raise DiveError for numbers that are not finite, and for a scale that is not above 0."""
    value = getattr(images, setting, None)
    several = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1
    numbers = list(value) if several else [value]  # type: ignore[arg-type]
    scale = setting != "image_mean"
    good = all(
        isinstance(one, (int, float, np.number))
        and not isinstance(one, bool)
        and math.isfinite(one)
        and (one > 0 or not scale)
        for one in numbers
    )
    if setting == "rescale_factor":
        good, wants = good and not several, "a finite number above 0 (1/255 for bytes)"
    else:
        good = good and (not several or len(numbers) == 3)
        wants = f"3 finite numbers{' above 0' if scale else ''}, for red, green and blue"
    if not good:
        raise _unfit(images, name, setting, wants)


def _disagreements(images: Any, sizes: dict[str, dict[str, int]]) -> Iterator[str]:
    """Yield the faults of images that are first resized to `size` and then cut to `crop_size`."""
    crop = sizes["crop_size"]["height"], sizes["crop_size"]["width"]
    cut = f"{crop[0]}" if crop[0] == crop[1] else f"{crop[0]} x {crop[1]}"
    if not _is_on(images, "do_resize"):
        yield (
            f"image_processor.do_resize is {getattr(images, 'do_resize', None)!r}, and crop_size "
            f"is {cut}: of larger images the model sees only the middle, and smaller ones get a "
            "black frame"
        )
        return
    size = sizes["size"]
    edge = size.get("shortest_edge")
    if edge is not None:
        made, shown = (edge, edge), f"the shortest_edge {edge}"
    elif "height" in size and "width" in size:
        made = size["height"], size["width"]
        shown = f"height {made[0]} and width {made[1]}"
    else:
        return
    wrong = []
    if made[0] != made[1]:
        wrong.append("images are squeezed to another shape")
    if any(have < want for have, want in zip(made, crop, strict=True)):
        wrong.append("images get a black frame")
    if any(have > want for have, want in zip(made, crop, strict=True)):
        wrong.append("the model sees only the middle of images")
    if wrong:
        yield (
            f"image_processor.size has {shown}, and crop_size is {cut}: {', and '.join(wrong)} "
            "(a model's own processor mostly has one value for both)"
        )


def _scaling(images: Any) -> str:
    """The settings that scale pixels: those that are not the class's own, or all."""
    values = {one: getattr(images, one, None) for one in _VALUES}
    changed = {
        one: value
        for one, value in values.items()
        if _comparable(value) != _comparable(_usual(images, one))
    }
    return ", ".join(
        f"image_processor.{one} is {value!r}" for one, value in (changed or values).items()
    )


def _comparable(value: Any) -> Any:
    """The value with numbers of any sequence type as a list."""
    return list(value) if isinstance(value, (list, tuple)) or hasattr(value, "tolist") else value


def _is_on(images: Any, switch: str) -> bool:
    return bool(getattr(images, switch, False))


def _usual(images: Any, own: str) -> Any:
    """The class's own value of a setting; None where it has none."""
    value = getattr(type(images), own, None)
    if own in ("size", "crop_size", "max_image_size") and value is not None:
        with contextlib.suppress(TypeError, ValueError):
            return {edge: one for edge, one in dict(value).items() if one is not None}
    return value


def _unfit(images: Any, name: str, setting: str, wants: str) -> DiveError:
    value = getattr(images, setting, None)
    return DiveError(f"{name}: image_processor.{setting} is {value!r}, want {wants}")
