"""Arguments of the wrong kind: one error that names the argument, what it got and what it wants."""

from numbers import Integral
from pathlib import Path
from typing import Any

from dive.errors import DiveError


def whole(name: str, value: Any, least: int) -> int:
    """A whole number from `least` on, as an int."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise DiveError(f"{name} is {value!r}, want a whole number from {least} on")
    return int(value)


def plain(value: Any) -> Any:
    """A number of numpy's or torch's (of a sweep, say) as Python's own; all else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise DiveError(f"{name} is {value!r}, want a string")
    return value


def place(name: str, value: Any) -> Path:
    """A file or folder by its name. An empty one is no name: pathlib takes it for the current
    folder, and a shell gives it for a variable that is not set."""
    if not isinstance(value, (str, Path)):
        raise DiveError(f"{name} is {value!r}, want the name of a file or folder")
    if value == "":
        raise DiveError(f"{name} is empty, want the name of a file or folder ('.' is this one)")
    return Path(value)
