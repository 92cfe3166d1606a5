"""One image file or PIL image to 8-bit RGB, fully decoded."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dive.errors import DiveError

# Containers are 16 bits wide, detectors are not: 12-bit films in 16-bit files are the usual case.
_BIT_DEPTHS = (8, 10, 12, 14, 16)


def load_rgb(image: Path | str | Image.Image, where: str = "") -> Image.Image:
    """Decode every pixel of `image` and return it as RGB, 8 bits a channel.

    - 16-bit and 32-bit integer grey: scaled by the smallest of 8, 10, 12, 14 or 16 bits that holds
      the largest value, so a 12-bit film in a 16-bit file is neither black nor stretched;
    - floating point grey: its minimum to maximum becomes 0 to 255;
    - transparency: laid over black, the background of a film;
    - the EXIF orientation is applied.

    `where` (file and line of the study) opens the error message.

    Raises:
        DiveError: the file is missing, is no image, is damaged, or holds several frames.
    """
    name = "an image in memory" if isinstance(image, Image.Image) else str(image)
    prefix = f"{where}: " if where else ""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images at 89 megapixels and refuses at twice that.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(image, Image.Image):
                image.load()
                return _to_rgb(image, prefix + name)
            with Image.open(image) as opened:
                opened.load()
                return _to_rgb(opened, prefix + name)
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


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise DiveError(f"{name} holds {frames} frames; wants a file with one image")
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
