"""Digests of images by their content: the bytes of a file, the pixels of one in memory."""

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
    """64 hexadecimal digits for mode, size and pixels, as they are in memory."""
    form = f"{image.mode} {image.size}\n".encode()
    return hashlib.sha256(form + image.tobytes()).hexdigest()


def digest_of_image(
    image: Any, where: str, name: str, of_pixels: Callable[[Image.Image], str] = digest_of_pixels
) -> str:
    """64 hexadecimal digits for an image's content. A lazy one counts as what it gives.

    where, name: of the study and of its image, for messages. of_pixels: names an image in memory.

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
            f"{where}: cannot read the image ({name}): is {error.kind}; wants a regular file"
        ) from None
    except OSError as error:
        raise DiveError(f"{where}: cannot read the image ({name}): {error.strerror}") from error
