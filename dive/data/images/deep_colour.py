"""Colour images of 16 bits per channel, of which Pillow by itself keeps only the high byte."""

import io
import re
import sys
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from dive.errors import DiveError
from dive.files.input import NoRegularFile, open_file

# Detectors have fewer bits than the files: 12-bit films in 16-bit files are the usual case.
_BIT_DEPTHS = (8, 10, 12, 14, 16)
_GREY = {name: ", or grey" for name in ("PNG", "TIFF", "PPM", "JPEG2000")}
_SIZ = b"\xff\x4f\xff\x51"  # starts the codestream of a JPEG 2000 file
_DEEP = re.compile(r"(?P<bands>[A-Za-z]+);16(?P<order>[BLN])")
_OTHER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_LOSSY = ("PNG", "TIFF", "PPM", "JPEG2000", "SGI", "AVIF")  # formats of which Pillow keeps 8 bits
_ALPHA = ("LA", "RGBA")
_COLOURS = {"LA": 1, "RGB": 3, "RGBA": 3, "RGBX": 3, "RGBa": 3}  # channels before alpha
_STRIP = (
    1 << 20
)  # pixels that are scaled at a time, because float64 takes eight times as many bytes
# libtiff unpacks to the machine's byte order, and Pillow (13) assumes the file's.
_NATIVE = {f"{mode}B{kind}": f"{mode}{kind}" for mode, kind in (("F;32", "F"), ("I;32", "S"))}
_NATIVE["I;16BS"] = "I;16S"
if sys.byteorder == "big":
    _NATIVE = {little: big for big, little in _NATIVE.items()}


def depth_of(largest: int) -> int:
    """Bits of the smallest usual depth that can represent `largest`; above 16 its own bits."""
    return next((bits for bits in _BIT_DEPTHS if largest < 2**bits), int(largest).bit_length())


def deep_rgb(image: Image.Image, name: str) -> Image.Image | None:
    """A PNG or TIFF file of 16 bits per channel, in colour or in grey with alpha, as 8-bit RGB.

    None for any other image. `image` is opened and not yet loaded. All 16 bits are read and scaled
    by the smallest depth that can represent the largest value, as for grey images. The background
    of transparent pixels is black.

    Raises:
        DiveError: channels of more than 8 bits that cannot be read completely; an image that is
            transparent everywhere.
    """
    if not is_deep(image, name):
        return None
    bands, order = _layout(image, name)
    # Pillow unpacks one byte of each pair: the high one, or the low one in the other byte order.
    raw = {"LA": "RGBA", "RGBa": f"RGBX;16{order}"}.get(bands, f"{bands};16{order}")
    data = _data(image)
    high = _unpacked(data, raw, bands)
    if bands == "LA":  # four bytes per pixel, read as RGBA
        four = np.asarray(high).astype(np.uint16)
        values = four[..., 0::2] << 8 | four[..., 1::2]
    else:
        low = _unpacked(data, raw[:-1] + _OTHER[order], bands)
        values = np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
    shown = Image.fromarray(_over_black(values, bands, image.info.get("transparency"), name))
    turn = high.getexif().get(0x0112)  # read after the pixels, where PNG files may have it
    if turn is not None:
        shown.getexif()[0x0112] = turn
    return shown


def is_deep(image: Image.Image, name: str) -> bool:
    """Whether `deep_rgb` reads the image, which would lose bits when loaded by Pillow."""
    opened = isinstance(image, ImageFile.ImageFile) and image.tile
    return bool(opened) and _layout(image, name)[0] != ""


def as_in_file(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """An image that Pillow has loaded, or its file opened again if bits were lost.

    A loaded image has the name of its file, but not its depth. Nothing is known of an image that
    was derived from another one, or opened from a stream.

    Raises:
        DiveError: as `is_deep`.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.tile or image.format not in _LOSSY:
        return image
    if image.format != "SGI" and len(image.getbands()) == 1:
        return image
    tags: Any = getattr(image, "tag_v2", {})
    bits = max(tags.get(258, (8,)))
    lost = f"was loaded before with 8 of {bits if bits > 8 else 16} bits per channel"
    given: Any = image.filename
    try:
        with open_file(given) as file, Image.open(file) as found:
            same = found.format == image.format
            if same and not is_deep(found, name):
                return image
            data = _data(found)
    except DiveError as error:
        if not isinstance(error, NoRegularFile):
            raise
        same, data = False, b""
    except (OSError, SyntaxError, ValueError):
        same, data = False, b""
    if not same:
        if bits > 8:
            notes.append(f"{lost}, and its file no longer exists: only the high ones are used")
        elif given:  # of a stream nothing is known, and nearly all images have 8 bits
            notes.append(
                "was loaded before, and its file no longer exists: if it had more than 8 bits per "
                "channel, only the high ones are used"
            )
        return image
    fresh, other = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    other.load()
    if (other.mode, other.size) == (image.mode, image.size) and other.tobytes() == image.tobytes():
        return fresh
    notes.append(f"{lost}, and changed since, or its file was: only the high ones are used")
    return image


def in_native_order(image: Image.Image) -> None:
    """Correct the byte order that Pillow assumes for a compressed TIFF of 32 bits or signed values.

    To be called before the image is loaded.
    """
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return
    if image.tile[0][0] == "libtiff" and _raw_mode(image) in _NATIVE:
        image.tile = _with_raw_mode(image, _NATIVE[_raw_mode(image)])


def _layout(image: Any, name: str) -> tuple[str, str]:
    """(bands, byte order) of 16-bit channels; ("", "") if no channel loses bits."""
    if image.format == "SGI":
        bits = 8 * _data(image)[3]  # bytes per value
    elif len(image.getbands()) == 1:
        return "", ""
    elif image.format == "AVIF":
        bits = _avif_bits(image)
    elif image.format == "JPEG2000":
        bits = _jpeg2000_bits(image)
    elif image.format == "PPM":
        # two bytes per value, which Pillow scales to 8 bits
        bits = next((16 for tile in image.tile if _largest(tile) > 255), 8)
    elif image.format == "TIFF":
        bits = max(image.tag_v2.get(258, (8,)))
    else:
        bits = 16 if image.format == "PNG" and ";16" in _raw_mode(image) else 8
    if bits <= 8:
        return "", ""
    match = _DEEP.fullmatch(_raw_mode(image))
    planar = image.format == "TIFF" and image.tag_v2.get(284, 1) != 1
    if image.format not in ("PNG", "TIFF") or match is None or planar:
        raise DiveError(
            f"{name} is a {image.format} file of {bits} bits per channel"
            f"{' in colour' if len(image.getbands()) > 1 else ''}"
            f"{', in separate planes' if planar else ''}, of which 8 would be read, want "
            f"such channels as PNG, as TIFF of 16 bits, or with 8 bits{_GREY.get(image.format, '')}"
        )
    return match["bands"], match["order"]


def _raw_mode(image: Any) -> str:
    args: Any = image.tile[0][3]
    return str(args if isinstance(args, str) else (args or ("",))[0])


def _largest(tile: Any) -> int:
    return max((one for one in tile[3] if isinstance(one, int)), default=0)


def _jpeg2000_bits(image: Any) -> int:
    data = _data(image)
    start = data.find(_SIZ)
    return (data[start + 42] & 0x7F) + 1 if 0 <= start < len(data) - 42 else 8


def _avif_bits(image: Any) -> int:
    """Bits by the codec configuration: its third byte begins tier, high bit depth, 12 bits."""
    data = _data(image)
    start = data.find(b"av1C")
    if not 0 <= start < len(data) - 6 or not data[start + 6] & 0x40:
        return 8
    return 12 if data[start + 6] & 0x20 else 10


def _data(image: Any) -> bytes:
    file: Any = getattr(image, "fp")  # noqa: B009 (Pillow's types do not know it)
    before = file.tell()
    try:
        file.seek(0)
        return file.read()
    finally:
        file.seek(before)


def _unpacked(data: bytes, raw: str, bands: str) -> Image.Image:
    """The pixels of the file, unpacked with another raw mode than Pillow chose."""
    opened: Any = Image.open(io.BytesIO(data))
    if bands in ("LA", "RGBa"):
        opened._mode = "RGBA" if bands == "LA" else "RGB"
    opened.tile = _with_raw_mode(opened, raw)
    opened.load()
    return opened


def _with_raw_mode(image: Any, raw: str) -> list[Any]:
    """The image's tiles with another raw mode."""
    found = []
    for tile in image.tile:
        args = raw if isinstance(tile[3], str) else (raw, *tile[3][1:])
        # a plain tuple before Pillow 11
        found.append((*tile[:3], args) if type(tile) is tuple else type(tile)(*tile[:3], args))
    return found


def _over_black(values: np.ndarray, bands: str, key: Any, name: str) -> np.ndarray:
    """uint16 [H, W, C] over black, as uint8 [H, W] or [H, W, 3].

    The colours of RGBa are multiplied by alpha already, so that alpha is not used.

    key: the transparent colour of a PNG.
    """
    top = (
        2 ** depth_of(int(values[..., : 4 if bands == "CMYK" else _COLOURS.get(bands, 3)].max()))
        - 1
    )
    alpha_top = 2 ** depth_of(int(values[..., -1].max())) - 1
    if bands in _ALPHA and not values[..., -1].any():
        raise DiveError(transparent(name))
    hidden = 0
    shown = np.empty((*values.shape[:2], 1 if bands == "LA" else 3), np.uint8)
    height = max(1, _STRIP // values.shape[1])
    for start in range(0, len(values), height):
        strip = values[start : start + height]
        if bands == "CMYK":
            unit = 1.0 - strip / top
            unit = 255.0 * unit[..., :3] * unit[..., 3:]
        else:
            colours = strip[..., : _COLOURS.get(bands, 3)]
            unit = colours * (255.0 / top)
            if bands in _ALPHA:
                unit *= strip[..., -1:] / alpha_top
            elif isinstance(key, tuple):
                see_through = (colours == np.asarray(key, np.uint16)).all(-1)
                hidden += int(np.count_nonzero(see_through))
                unit[see_through] = 0.0
        shown[start : start + height] = np.rint(unit).astype(np.uint8)
    if hidden == values.shape[0] * values.shape[1]:
        raise DiveError(transparent(name))
    return shown.squeeze(-1 if shown.shape[-1] == 1 else ())


def transparent(name: str) -> str:
    return f"{name} is transparent everywhere (alpha is 0), so that nothing of it is visible"
