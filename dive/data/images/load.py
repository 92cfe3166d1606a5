"""Decoding of an image file or PIL image to 8-bit RGB, and its size from the header."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from dive.data.images.bounds import MAX_PIXELS, check_pixels
from dive.data.images.contrast import EDGES, low_contrast
from dive.data.images.deep_colour import (
    as_in_file,
    deep_rgb,
    in_native_order,
    is_deep,
    transparent,
)
from dive.data.images.deep_grey import is_wide, narrowed
from dive.data.images.dicom.read import dicom_size, is_dicom, is_dicom_data, read_dicom
from dive.data.images.names import image_error_reason, path_of
from dive.data.images.quiet import quiet
from dive.data.images.tiff import open_image
from dive.errors import DiveError
from dive.errors.private import public_reason
from dive.files.input import NoRegularFile, open_file

# Formats whose size is known when a file is opened; others are decoded for it.
_SIZE_IN_HEADER = {"JPEG", "MPO", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000"}
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height

# Tags of TIFF files, by number
_SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _DNG_VERSION = 254, 258, 262, 339, 50706
_START = 132  # bytes at the start of a file that identify it
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

SEEN = "dive: looked at"  # in the `info` of images decoded here, so that each is warned of once

# Warnings so far: a file is read several times (sizes, then a cache, then training).
_warned: set[str] = set()

IMAGES = "a path, a PIL image or a LazyImage"  # the types of an image of a study, for messages

T = TypeVar("T")


class LazyImage:
    """An image that is fetched when it is needed, such as one of a dataset object.

    Args:
        name: its name in messages and results; `str(image)`.
        fetch: returns a path, a PIL image, or the bytes of an image file.
    """

    def __init__(self, name: str, fetch: Callable[[], Path | str | bytes | Image.Image]) -> None:
        self.name = name
        self.fetch = fetch

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"LazyImage({self.name!r})"


def is_image(value: object) -> bool:
    """Whether the type of `value` is one of `IMAGES`."""
    return isinstance(value, (str, os.PathLike, Image.Image, LazyImage))


def fetched(image: LazyImage, where: str = "", name: str = "") -> Path | str | bytes | Image.Image:
    """Fetch a lazy image, which messages call `name`.

    Raises:
        DiveError: `fetch` raises any exception, or returns something else than an image.
    """
    prefix = f"{where}: " if where else ""
    name = f"({name})" if name else str(image)
    try:
        given = image.fetch()
    except DiveError:
        raise
    except Exception as error:  # code of the caller may raise anything
        raise DiveError(
            f"{prefix}the image {name} cannot be fetched: {type(error).__name__}: "
            f"{public_reason(error, where=where)}"
        ) from error
    if not isinstance(given, (bytes, str, os.PathLike, Image.Image)):
        raise DiveError(
            f"{prefix}the image {name} is fetched as a {type(given).__name__}, want a path, a "
            "PIL image, or the bytes of a file"
        )
    return given


def load_rgb(
    image: Path | str | Image.Image | LazyImage,
    where: str = "",
    *,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
    edge: int | None = None,
) -> Image.Image:
    """Decode `image` completely and return it as RGB, 8 bits per channel.

    - 16-bit and 32-bit integers, in grey or in colour: scaled by the smallest of 8, 10, 12, 14 or
      16 bits that can represent the largest value, so a 12-bit film in a 16-bit file is neither
      black nor stretched; above 16 bits, by the bits of the largest value;
    - floating point grey: its minimum to maximum becomes 0 to 255;
    - TIFF whose small values are bright (WhiteIsZero): inverted;
    - transparency: black, the background of a film;
    - the EXIF orientation is applied;
    - of a JPEG with further pictures, as phones write (MPO), the first is used;
    - DICOM (`dive.data.images.dicom`): window, rescale and photometric interpretation are applied.

    The error message begins with `where` (file and line of the study) and calls the image `name`
    ("1 of 2"), if given, instead of its path. A file with more than `max_pixels` according to its
    header is refused before it is decoded. With `edge` a JPEG file may be decoded smaller, by 2, 4
    or 8, as long as its shorter edge has that many pixels, in a fraction of the time. A warning
    names a film of which nothing, or hardly anything, is visible (`dive.data.images.contrast`),
    once per file and process.

    Raises:
        DiveError: the file is missing, no image, damaged, or has several frames or too many pixels;
            its channels cannot be read completely; it is transparent everywhere.
    """
    named = ""
    notes: list[str] = []

    def dicom(path: Path | str | bytes, called: str) -> Image.Image:
        nonlocal named
        named = called
        pixels, found = read_dicom(path, max_pixels, where, called)
        notes.extend(found)
        return Image.fromarray(pixels).convert("RGB")

    def film(opened: Image.Image, called: str) -> Image.Image:
        nonlocal named
        named = called.removeprefix(f"{where}: ")
        _one_frame(opened, called)
        if edge is not None:
            opened.draft(None, (edge, edge))
        opened = as_in_file(opened, called, notes)
        deep = deep_rgb(opened, called)
        if deep is not None:
            return ImageOps.exif_transpose(deep).convert("RGB")
        in_native_order(opened)
        opened.load()
        return _to_rgb(opened, called, notes)

    shown = _opened(image, where, name, max_pixels, dicom, film)
    if not shown.info.get(SEEN) and not any("contrast" in note for note in notes):
        little = low_contrast(np.reshape(shown.histogram(), (3, 256)))
        if "one colour" in little:
            little += f", {shown.getpixel((0, 0))} of 255 at its corner"
        notes += [little] if little else []
    in_memory = isinstance(image, Image.Image)
    subject = f"the image ({name})" if name else named if in_memory else f"the image {named}"
    for note in notes:
        text = f"{where}: {subject} {note}" if where else f"{subject} {note}"
        warning = text if in_memory else f"{image} {note}"  # several images may have the same name
        if warning in _warned and (where or not in_memory):
            continue
        _warned.add(warning)
        warnings.warn(text, stacklevel=2)
    shown.info[SEEN] = True
    return shown


def blank_image(size: tuple[int, int]) -> Image.Image:
    """A black image on purpose, without the warning about its contrast."""
    image = Image.new("RGB", size)
    image.info[SEEN] = True
    return image


def image_size(
    image: Path | str | Image.Image | LazyImage,
    where: str = "",
    *,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, int]:
    """(width, height) of the result of `load_rgb`, in pixels, from the header of the file.

    The pixels are not read; only formats whose header does not have the size for certain are
    decoded.

    Raises:
        DiveError: as `load_rgb`, except for damage behind the header.
    """

    def dicom(path: Path | str | bytes, called: str) -> tuple[int, int]:
        return dicom_size(path, max_pixels, where, called)

    return _opened(image, where, name, max_pixels, dicom, _size)


def _opened(
    image: Path | str | Image.Image | LazyImage,
    where: str,
    given_name: str,
    max_pixels: int,
    dicom: Callable[[Path | str | bytes, str], T],
    film: Callable[[Image.Image, str], T],
) -> T:
    """The result of `dicom` for a DICOM file, or of `film` for another image that is opened."""
    name = _in_memory(image) if isinstance(image, Image.Image) else str(image)
    seen = f"image {given_name}" if given_name else name
    name = f"({given_name})" if given_name else name
    prefix = f"{where}: " if where else ""
    opened: Any = image
    if isinstance(image, LazyImage):
        opened = fetched(image, where, given_name)
        if isinstance(opened, bytes):
            if is_dicom_data(opened):
                return dicom(opened, name)
            opened = io.BytesIO(opened)
    elif not is_image(image):
        raise DiveError(f"{prefix}an image is a {type(image).__name__}, want {IMAGES}")
    if isinstance(opened, (str, os.PathLike)):
        opened = path_of(opened, where, given_name)
        if is_dicom(opened):
            return dicom(opened, name if given_name else str(opened))
    try:
        with quiet():
            if isinstance(opened, Image.Image):
                if not is_deep(opened, prefix + seen):
                    in_native_order(opened)
                    opened.load()
                return film(opened, prefix + seen)
            # Opened here, because Pillow (13) maps the pixels of a rotated TIFF wrongly into memory
            # if it opens the file.
            with (
                open_file(opened) if isinstance(opened, Path) else nullcontext(opened) as file,
                open_image(file, prefix + seen, max_pixels) as lazy,
            ):
                check_pixels(*lazy.size, max_pixels, f"{prefix}the image {name} has")
                return film(lazy, prefix + seen)
    except NoRegularFile as error:
        raise DiveError(
            f"{prefix}cannot read the image {name}: is {error.kind}, want a regular file"
        ) from None
    except DiveError:
        raise
    except FileNotFoundError:
        raise DiveError(f"{prefix}there is no image file {name}") from None
    except MemoryError:
        raise DiveError(f"{prefix}the image {name} needs more memory than there is") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        TypeError,
        LookupError,
        OverflowError,
        ArithmeticError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        # Pillow raises any of these on damage, depending on the format and the location
        kind = _unread(opened)
        reason = (
            f"is {kind}" if kind else image_error_reason(error, where) if given_name else str(error)
        )
        raise DiveError(
            f"{prefix}cannot read the image {name}: {reason}, want a complete PNG, JPEG or other "
            "file that Pillow reads"
        ) from error


def _in_memory(image: Image.Image) -> str:
    file = getattr(image, "filename", "")
    return f"an image in memory (opened from {os.fsdecode(file)})" if file else "an image in memory"


def _size(film: Image.Image, name: str) -> tuple[int, int]:
    in_file = isinstance(film, ImageFile.ImageFile) and bool(film.tile)
    if in_file and (film.format not in _SIZE_IN_HEADER or _turned_later(film)):
        film.load()
        in_file = False
    _one_frame(film, name)
    width, height = film.size
    if in_file and film.format == "TIFF":
        # by its tags: some versions of Pillow rotate the size when a file is opened, others later
        tags: Any = film
        width, height = int(tags.tag_v2[256]), int(tags.tag_v2[257])
    # not the method of the PNG class, which decodes the image first
    turned = Image.Image.getexif(film).get(ExifTags.Base.Orientation) in _SIDEWAYS
    return (height, width) if turned else (width, height)


def _turned_later(film: Image.Image) -> bool:
    """Whether a PNG file may have its orientation behind the pixels, where Pillow finds it, too."""
    if film.format != "PNG":
        return False
    file: Any = getattr(film, "fp")  # noqa: B009 (Pillow's types do not know it)
    before = file.tell()
    try:
        file.seek(8)
        behind = False
        while len(head := file.read(8)) == 8:
            kind = head[4:]
            behind = behind or kind == b"IDAT"
            if kind == b"IEND":
                return False
            if behind and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
        return False
    finally:
        file.seek(before)


def _unread(opened: Any) -> str:
    """The name of a format of phones and viewers that Pillow does not read; "" for others."""
    try:
        if isinstance(opened, io.BytesIO):
            start = opened.getvalue()[:_START]
        else:
            with open_file(opened) as file:
                start = file.read(_START)
    except (OSError, TypeError, DiveError):
        return ""
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
        return "HEIC, for which Pillow needs a plugin (pillow_heif, registered before)"
    if start[128:132] == b"DICM":
        return "DICOM under the name of another format; name it .dcm"
    return ""


def _one_frame(image: Image.Image, name: str) -> None:
    """Raise DiveError for several images, or a reduced copy before the image."""
    tags: Any = getattr(image, "tag_v2", {})
    kind = tags.get(_SUBFILE)
    if tags.get(_DNG_VERSION) is not None or (isinstance(kind, int) and kind & 1):
        raise DiveError(
            f"{name} is a raw or TIFF file whose first image is a reduced copy of another, want "
            "a file with one image"
        )
    frames = getattr(image, "n_frames", 1)
    # Further pictures in a phone's JPEG are previews, depth or another exposure.
    if frames > 1 and image.format != "MPO":
        raise DiveError(f"{name} holds {frames} frames, want a file with one image")


def _to_rgb(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    tags: Any = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(_PHOTOMETRIC) == 0
    unsigned = tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,)
    # Film viewers and phones store the rotation instead of rotating the pixels.
    if is_wide(image):
        turn = image.getexif().get(ExifTags.Base.Orientation)
        grey = narrowed(image, white_is_zero, unsigned, name)
        if turn is not None:
            grey.getexif()[ExifTags.Base.Orientation] = turn
            grey = ImageOps.exif_transpose(grey)
        return grey.convert("RGB")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[-1] == (0, 0):
            raise DiveError(transparent(name))
        hidden = image.getchannel("A").histogram()[0] / (image.width * image.height)
        if hidden >= 1 - EDGES:
            notes.append(
                f"has hardly any contrast: {100 * hidden:.2f}% of its pixels are transparent, and "
                "shown black"
            )
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    # A copy even if nothing changes, so that the caller's image is not modified.
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
