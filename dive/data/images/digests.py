"""Digests of images by content: the bytes of a file, the pixels of an image in memory."""

import hashlib
import os
from collections.abc import Callable
from typing import Any

from PIL import Image

from dive.data.images.bounds import check_bytes
from dive.data.images.load import LazyImage, fetched
from dive.data.images.names import path_of
from dive.errors import DiveError
from dive.files.input import NoRegularFile, open_file


def digest_of_pixels(image: Image.Image) -> str:
    """Digest of mode, size and pixels in memory, 64 hexadecimal digits."""
    form = f"{image.mode} {image.size}\n".encode()
    return hashlib.sha256(form + image.tobytes()).hexdigest()


def digest_of_image(
    image: Any, where: str, name: str, of_pixels: Callable[[Image.Image], str] = digest_of_pixels
) -> str:
    """Digest of the content of an image, 64 hexadecimal digits; a lazy image is fetched.

    where, name: of the study and its image, for messages. of_pixels: digest of an image in memory.

    Raises:
        DiveError: it cannot be read, is no regular file, or is larger than an image can be.
    """
    given = fetched(image, where, name) if isinstance(image, LazyImage) else image
    if isinstance(given, Image.Image):
        return of_pixels(given)
    if isinstance(given, bytes):
        return hashlib.sha256(given).hexdigest()
    path = path_of(given, where, name)
    try:
        with open_file(path) as file:
            check_bytes(os.fstat(file.fileno()).st_size, f"{where}: the image ({name})")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except NoRegularFile as error:
        raise DiveError(
            f"{where}: cannot read the image ({name}): is {error.kind}, want a regular file"
        ) from None
    except OSError as error:
        raise DiveError(f"{where}: cannot read the image ({name}): {error.strerror}") from error
