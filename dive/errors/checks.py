"""Checks of arguments: one error that names the argument, its value and what is accepted."""

import errno
import os
from numbers import Integral
from pathlib import Path
from typing import Any, TypeGuard

from dive.errors import DiveError

ENGINES = ("auto", "dive._C", "transformers")  # values of `engine=`, which chooses what decodes
# what every path of `steer` takes; csrc/ has its own copies, and a test compares them
ACTIVATIONS = ("silu", "gelu", "tanh", "identity")
MAX_RANK = 128
# float32: the least and the largest normal number, and the bounds between which squares and
# their reciprocals are normal, too
LEAST, MOST = 2.0**-126, 2.0**128 - 2.0**104
LEAST_SQUARED, MOST_SQUARED = 2.0**-63, 2.0**63
_WANTED = "want the name of a file or folder"


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether `value` is an integer of Python or numpy, and neither True nor False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(name: str, value: Any, least: int) -> int:
    """Returns a whole number of at least `least` as an int."""
    if not is_whole(value) or value < least:
        raise DiveError(f"{name} is {value!r}, want a whole number from {least} on")
    return int(value)


def plain(value: Any) -> Any:
    """Returns a scalar of numpy or torch as a Python number, any other value unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_number(value: Any, least: float = LEAST, most: float = MOST) -> bool:
    """Whether `value` is a Python number from `least` to `most`, and neither True nor False."""
    return type(value) in (int, float) and least <= value <= most


def text(name: str, value: Any) -> str:
    """Returns a string unchanged."""
    if not isinstance(value, str):
        raise DiveError(f"{name} is {value!r}, want a string")
    return value


def engine(value: Any) -> str:
    """Returns one of `ENGINES` unchanged."""
    if value not in ENGINES:
        raise DiveError(f"engine is {value!r}, want one of {', '.join(ENGINES)}")
    return str(value)


def is_path(value: Any) -> TypeGuard[os.PathLike]:
    """Whether `value` is an `os.PathLike`; a string is none."""
    return isinstance(value, os.PathLike)


def names_a_path(value: Any) -> bool:
    """Whether `value` can name a file: a string or an `os.PathLike`."""
    return isinstance(value, str) or is_path(value)


def path(name: str, value: Any) -> Path:
    """The path of a file or folder to read or to write, from a string or an `os.PathLike`.

    `~` is the home folder, as in a shell. An empty or blank name is refused: pathlib takes "" for
    the current folder, and a shell passes it for a variable that is not set.
    """
    given = os.fspath(value) if is_path(value) else value
    if not isinstance(given, str):
        raise DiveError(f"{name} is {value!r}, {_WANTED}")
    if not given.strip():
        state = f"blank ({given!r})" if given else "empty"
        raise DiveError(f"{name} is {state}, {_WANTED} ('.' is the current folder)")
    try:
        found = Path(given).expanduser()
        os.lstat(found)
    except RuntimeError as error:
        raise DiveError(f"{name} is {shown(given)}, and there is no such home folder") from error
    except ValueError as error:
        # a NUL, half a surrogate pair
        raise DiveError(f"{name} is {shown(given)}, which no file can be called") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DiveError(f"{name} is {shown(given)}, too long for a file's name") from error
        # a missing or unreadable file is an error of the code that reads or writes it
    return found


def shown(name: str) -> str:
    """A name as a message shows it, shortened where it is long."""
    return repr(name) if len(name) <= 200 else f"{name[:40]!r}... ({len(name)} letters)"
