"""Conversion of grey films of more than 8 bits to 8 bits, in strips of rows.

A film has up to 100 million pixels, and a copy in float64 eight times as many bytes.
"""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from dive.data.images.deep_colour import depth_of, transparent
from dive.errors import DiveError

_STRIP = 1 << 20  # pixels
_TABLE = 1 << 16  # grey values up to which a lookup table is used

Scale = Callable[[np.ndarray], np.ndarray]


def is_wide(image: Image.Image) -> bool:
    """Whether an image is grey with more than 8 bits: integers, or floating point."""
    return image.mode.startswith("I") or image.mode == "F"


def narrowed(image: Image.Image, white_is_zero: bool, unsigned: bool, name: str) -> Image.Image:
    """A grey image of more than 8 bits as one of 8 (mode L), as `dive.data.images.load_rgb` says.

    white_is_zero: small values are bright. unsigned: of 32 bits that Pillow reads as signed.

    Raises:
        DiveError: negative or non-finite values; an image that is transparent everywhere.
    """
    scale = _floats(image, white_is_zero, name) if image.mode == "F" else None
    if scale is None:
        scale = _integers(image, white_is_zero, unsigned, name)
    shown = np.empty((image.height, image.width), np.uint8)
    key = image.info.get("transparency")  # the transparent grey value of a PNG
    keyed = isinstance(key, int) and image.mode != "F"
    hidden = 0
    for top, strip in _strips(image, unsigned):
        rows = shown[top : top + len(strip)]
        rows[:] = scale(strip)
        if keyed:
            see_through = strip == key
            rows[see_through] = 0
            hidden += int(np.count_nonzero(see_through))
    if hidden == shown.size:
        raise DiveError(transparent(name))
    return Image.fromarray(shown)


def _strips(image: Image.Image, unsigned: bool = False) -> Iterator[tuple[int, np.ndarray]]:
    """The index of the first row of each strip, and its values: [rows, W]."""
    width, height = image.size
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = np.asarray(image.crop((0, top, width, min(height, top + rows))))
        yield top, strip.astype(np.int64) & 0xFFFFFFFF if unsigned else strip


def _integers(image: Image.Image, white_is_zero: bool, unsigned: bool, name: str) -> Scale:
    low = high = 0
    for _, strip in _strips(image, unsigned):
        low, high = min(low, int(strip.min())), max(high, int(strip.max()))
    if low < 0:
        raise DiveError(f"{name} has negative pixel values, want grey values from 0 up")
    top = 2 ** depth_of(high) - 1

    def scale(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.int64)
        kept = top - values if white_is_zero else values
        return np.rint(kept * (255.0 / top)).astype(np.uint8)

    if top >= _TABLE:
        return scale
    table = scale(np.arange(top + 1))
    return lambda values: table[values]


def _floats(image: Image.Image, white_is_zero: bool, name: str) -> Scale:
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        if not np.isfinite(strip).all():
            raise DiveError(f"{name} has pixel values that are not finite numbers")
        low, high = min(low, float(strip.min())), max(high, float(strip.max()))

    def scale(values: np.ndarray) -> np.ndarray:
        grey = values.astype(np.float64)
        unit = (grey - low) / (high - low) if high > low else np.zeros_like(grey)
        unit = 1.0 - unit if white_is_zero and high > low else unit
        return np.rint(unit * 255).astype(np.uint8)

    return scale
