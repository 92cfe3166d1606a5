"""One image file or PIL image to 8-bit RGB, fully decoded; or its size, by its header."""

import io
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from dive import checks
from dive.data.dicom import dicom_size, is_dicom, read_dicom
from dive.errors import DiveError

# A chest film has 5 to 20 million pixels; what has ten times as many is a mistake or an attack.
MAX_PIXELS = 100_000_000

# Containers are 16 bits wide, detectors are not: 12-bit films in 16-bit files are the usual case.
_BIT_DEPTHS = (8, 10, 12, 14, 16)

# Formats whose size is known when a file is opened; others are decoded to learn it.
_TOLD_BY_HEADER = {"JPEG", "MPO", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000"}
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height

IMAGES = "a path, a PIL image or a LazyImage"  # what an image of a study may be

T = TypeVar("T")


class LazyImage:
    """An image that is fetched when it is needed: a row of a dataset object, say.

    Args:
        name: what error messages and reports call it; `str(image)`.
        fetch: gives a path, a PIL image, or the bytes of an image file.
    """

    def __init__(self, name: str, fetch: Callable[[], Path | str | bytes | Image.Image]) -> None:
        self.name = name
        self.fetch = fetch

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"LazyImage({self.name!r})"


def is_image(value: object) -> bool:
    """Whether it is one of `IMAGES`, by its kind alone."""
    return isinstance(value, (str, os.PathLike, Image.Image, LazyImage))


def fetched(image: LazyImage, where: str = "") -> Path | str | bytes | Image.Image:
    """What a lazy image gives.

    Raises:
        DiveError: it raises anything, or gives something else than an image.
    """
    prefix = f"{where}: " if where else ""
    try:
        given = image.fetch()
    except DiveError:
        raise
    except Exception as error:  # the caller's own code may raise whatever it likes
        raise DiveError(
            f"{prefix}the image {image} cannot be fetched: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(given, (bytes, str, os.PathLike, Image.Image)):
        raise DiveError(
            f"{prefix}the image {image} is fetched as a {type(given).__name__}; wants a path, a "
            "PIL image, or the bytes of a file"
        )
    return given


def load_rgb(
    image: Path | str | Image.Image | LazyImage, where: str = "", *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode every pixel of `image` and return it as RGB, 8 bits a channel.

    - 16-bit and 32-bit integer grey: scaled by the smallest of 8, 10, 12, 14 or 16 bits that holds
      the largest value, so a 12-bit film in a 16-bit file is neither black nor stretched;
    - floating point grey: its minimum to maximum becomes 0 to 255;
    - transparency: laid over black, the background of a film;
    - the EXIF orientation is applied;
    - DICOM (`dive.data.dicom`): window, rescale and photometric interpretation are applied.

    `where` (file and line of the study) opens the error message. A file that says it has more than
    `max_pixels` is refused before they are decoded.

    Raises:
        DiveError: the file is missing, is no image, is damaged, holds several frames or too many
            pixels.
    """

    def dicom(path: Path | str) -> Image.Image:
        return Image.fromarray(read_dicom(path, max_pixels, where)).convert("RGB")

    def film(opened: Image.Image, name: str) -> Image.Image:
        opened.load()
        return _to_rgb(opened, name)

    return _opened(image, where, max_pixels, dicom, film)


def image_size(
    image: Path | str | Image.Image | LazyImage, where: str = "", *, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """(width, height) of what `load_rgb` gives, in pixels, from the header of the file.

    What the pixels behind a header are like is not looked at. Only formats whose header does not
    tell the size for certain are decoded.

    Raises:
        DiveError: as `load_rgb`, but for damage behind the header.
    """
    return _opened(image, where, max_pixels, lambda p: dicom_size(p, max_pixels, where), _size)


def _opened(
    image: Path | str | Image.Image | LazyImage,
    where: str,
    max_pixels: int,
    dicom: Callable[[Path | str], T],
    film: Callable[[Image.Image, str], T],
) -> T:
    """What `dicom` makes of a DICOM file, or `film` of any other image, opened but not decoded."""
    name = "an image in memory" if isinstance(image, Image.Image) else str(image)
    prefix = f"{where}: " if where else ""
    opened: Any = image
    if isinstance(image, LazyImage):
        opened = fetched(image, where)
        opened = io.BytesIO(opened) if isinstance(opened, bytes) else opened
    elif not is_image(image):
        raise DiveError(f"{prefix}an image is a {type(image).__name__}; wants {IMAGES}")
    if isinstance(opened, (str, os.PathLike)):
        opened = checks.place(f"{prefix}the image", opened)
        if is_dicom(opened):
            return dicom(opened)
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images at 89 megapixels; the limit here is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(opened, Image.Image):
                opened.load()
                return film(opened, prefix + name)
            # Opened here, for of a file that Pillow opens it maps the pixels of a turned TIFF into
            # memory wrongly (version 13).
            with (
                open(opened, "rb") if isinstance(opened, Path) else nullcontext(opened) as file,
                Image.open(file) as lazy,
            ):
                if lazy.width * lazy.height > max_pixels:
                    raise DiveError(
                        f"{prefix}the image {name} has {lazy.width} x {lazy.height} pixels, the "
                        f"limit is {max_pixels:,} (decompression bomb?)"
                    )
                return film(lazy, prefix + name)
    except DiveError:
        raise
    except FileNotFoundError:
        raise DiveError(f"{prefix}there is no image file {name}") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow reports damage as any of these, depending on the format and on where it is.
        raise DiveError(
            f"{prefix}cannot read the image {name}: {error}; wants a whole PNG, JPEG or other "
            "file that Pillow reads"
        ) from error


def _size(film: Image.Image, name: str) -> tuple[int, int]:
    in_file = isinstance(film, ImageFile.ImageFile) and bool(film.tile)
    if in_file and (film.format not in _TOLD_BY_HEADER or _turned_later(film)):
        film.load()
        in_file = False
    _one_frame(film, name)
    width, height = film.size
    if in_file and film.format == "TIFF":
        # by its tags: some versions of Pillow turn the size when a file is opened, others later
        tags: Any = film
        width, height = int(tags.tag_v2[256]), int(tags.tag_v2[257])
    # not the method of PNG files, which decodes the image first
    turned = Image.Image.getexif(film).get(ExifTags.Base.Orientation) in _SIDEWAYS
    return (height, width) if turned else (width, height)


def _turned_later(film: Image.Image) -> bool:
    """Whether a PNG file may hold its orientation behind the pixels, where Pillow finds it, too."""
    if film.format != "PNG":
        return False
    file: Any = getattr(film, "fp")  # noqa: B009 (Pillow's types do not know it)
    place = file.tell()
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
        file.seek(place)


def _one_frame(image: Image.Image, name: str) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise DiveError(f"{name} holds {frames} frames; wants a file with one image")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    _one_frame(image, name)
    # Film viewers and phones note the rotation instead of turning the pixels.
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0:
            raise DiveError(f"{name} has negative pixel values; wants grey values from 0 up")
        largest = int(values.max())
        bits = next((bits for bits in _BIT_DEPTHS if largest < 2**bits), 32)
        scaled = np.rint(values * (255.0 / (2**bits - 1))).astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if image.mode == "F":
        grey = np.asarray(image)
        if not np.isfinite(grey).all():
            raise DiveError(f"{name} has pixel values that are not finite numbers")
        low, high = float(grey.min()), float(grey.max())
        unit = (grey - low) / (high - low) if high > low else np.zeros_like(grey)
        return Image.fromarray(np.rint(unit * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    # A copy even where nothing changes, so that the caller's image and file are left alone.
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
