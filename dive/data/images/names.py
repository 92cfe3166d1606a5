"""Images of studies in messages, by their number in the study: a path may name a patient."""

from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError

from dive.errors import DiveError, checks
from dive.errors.private import public_reason

# the errors of `checks.path` without the path
_HARMS = {
    "is empty": "that is empty",
    "is blank": "that is blank",
    "no such home folder": "in a home folder that is not there",
    "no file can be called": "that no file can be called",
    "too long for a file's name": "too long for a file's name",
}


def image_error_reason(error: Exception, where: str) -> str:
    """The message of Pillow's error without the path."""
    if isinstance(error, UnidentifiedImageError):  # the message has the path of the file
        return "cannot identify image file"
    return public_reason(error, where=where)


def path_of(given: Any, where: str, name: str) -> Path:
    """The path of an image of a study; raises DiveError where it cannot be a path."""
    try:
        return checks.path(f"{where}: the image" if where else "the image", given)
    except DiveError as error:
        if not name:
            raise
        harm = next((one for one in _HARMS if one in str(error)), "which no file can have")
        raise DiveError(
            f"{where}: the image ({name}) has a path {_HARMS.get(harm, harm)}"
        ) from error
