"""How large an image may be: told by its header, and looked at before anything is unpacked."""

import os

from dive.errors import DiveError

_SETTING = "DIVE_MAX_PIXELS"


def _pixels() -> int:
    given = os.environ.get(_SETTING, "").strip().replace("_", "") or "100000000"
    if not given.isascii() or not given.isdigit() or not 1 <= len(given) <= 12 or int(given) < 1:
        raise DiveError(f"{_SETTING} is {given[:40]!r}, want a whole number from 1 on")
    return int(given)


# A chest film has 5 to 20 million pixels; what has ten times as many is a mistake or an attack.
# Whoever truly has larger films sets the variable.
MAX_PIXELS = _pixels()
MAX_FILE_BYTES = 16 * MAX_PIXELS  # four values of 32 bits a pixel, nothing compressed


def check_bytes(size: int, subject: str) -> None:
    """DiveError for a file of more bytes than an image can have, before all of it is read: a
    terabyte of nothing takes no room on the disk. `subject` begins the message."""
    if size > MAX_FILE_BYTES:
        raise DiveError(f"{subject} holds {size:,} bytes; the limit is {MAX_FILE_BYTES:,}")


def check_pixels(width: int, height: int, most: int, subject: str) -> None:
    """DiveError for more than `most` pixels; `subject` begins the message."""
    if width * height > most:
        raise DiveError(
            f"{subject} {width} x {height} pixels, the limit is {most:,} (decompression bomb?); "
            f"of films that are so large the variable {_SETTING} raises it"
        )
