"""Limits on the size of an image, which are checked by its header before it is decoded."""

import os

from dive.errors import DiveError

_SETTING = "DIVE_MAX_PIXELS"


def _pixels() -> int:
    given = os.environ.get(_SETTING, "").strip().replace("_", "") or "100000000"
    if not given.isascii() or not given.isdigit() or not 1 <= len(given) <= 12 or int(given) < 1:
        raise DiveError(f"{_SETTING} is {given[:40]!r}, want a whole number from 1 on")
    return int(given)


# A chest film has 5 to 20 million pixels; ten times as many are a mistake or an attack. The
# environment variable allows larger films.
MAX_PIXELS = _pixels()
MAX_FILE_BYTES = 16 * MAX_PIXELS  # four values of 32 bits per pixel, uncompressed


def check_bytes(size: int, subject: str) -> None:
    """Raise DiveError for a file of more bytes than an image can have, before it is read.

    A sparse file of a terabyte takes no space on the disk. The message begins with `subject`.
    """
    if size > MAX_FILE_BYTES:
        raise DiveError(f"{subject} holds {size:,} bytes; the limit is {MAX_FILE_BYTES:,}")


def check_pixels(width: int, height: int, most: int, subject: str) -> None:
    """Raise DiveError for more than `most` pixels; the message begins with `subject`."""
    if width * height > most:
        raise DiveError(
            f"{subject} {width} x {height} pixels, the limit is {most:,} (decompression bomb?); "
            f"the environment variable {_SETTING} raises it for larger films"
        )
