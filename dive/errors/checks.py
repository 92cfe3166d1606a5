"""Arguments of the wrong kind: one error that names the argument, what it got and what it wants."""

import errno
import os
from numbers import Integral
from pathlib import Path
from typing import Any, TypeGuard

from dive.errors import DiveError

ENGINES = ("auto", "dive._C", "transformers")  # what may be asked to decode
# what every path of `steer` takes; csrc/ has both of its own, and a test holds them together
ACTIVATIONS = ("silu", "gelu", "tanh", "identity")
MAX_RANK = 128
# of float32: the least and the largest that are normal, and between which squares and their
# reciprocals are
LEAST, MOST = 2.0**-126, 2.0**128 - 2.0**104
LEAST_SQUARED, MOST_SQUARED = 2.0**-63, 2.0**63
_WANTED = "want the name of a file or folder"


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number: of Python's or numpy's kind, and neither True nor False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(name: str, value: Any, least: int) -> int:
    """A whole number from `least` on, as an int."""
    if not is_whole(value) or value < least:
        raise DiveError(f"{name} is {value!r}, want a whole number from {least} on")
    return int(value)


def plain(value: Any) -> Any:
    """A number of numpy's or torch's (of a sweep, say) as Python's own; all else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_number(value: Any, least: float = LEAST, most: float = MOST) -> bool:
    """Whether it is a number of Python's from `least` to `most`, and neither True nor False."""
    return type(value) in (int, float) and least <= value <= most


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise DiveError(f"{name} is {value!r}, want a string")
    return value


def engine(value: Any) -> str:
    """One of `ENGINES`."""
    if value not in ENGINES:
        raise DiveError(f"engine is {value!r}, want one of {', '.join(ENGINES)}")
    return str(value)


def is_path(value: Any) -> TypeGuard[os.PathLike]:
    """Whether it is an object that names a file (pathlib's, or any `os.PathLike`), and no text."""
    return isinstance(value, os.PathLike)


def names_a_path(value: Any) -> bool:
    """Whether it is the name of something to be read: a text or a path."""
    return isinstance(value, str) or is_path(value)


def path(name: str, value: Any) -> Path:
    """A file or folder by its name, to read or to write: a text or an `os.PathLike`.

    `~` is the home folder, as in a shell. An empty or blank one is no name: pathlib takes "" for
    the current folder, and a shell gives it for a variable that is not set.
    """
    given = os.fspath(value) if is_path(value) else value
    if not isinstance(given, str):
        raise DiveError(f"{name} is {value!r}, {_WANTED}")
    if not given.strip():
        state = f"blank ({given!r})" if given else "empty"
        raise DiveError(f"{name} is {state}, {_WANTED} ('.' is this one)")
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
        # that it is not there, or may not be seen, matters to whoever reads or writes it
    return found


def shown(name: str) -> str:
    """A name for a message, cut down where it is long."""
    return repr(name) if len(name) <= 200 else f"{name[:40]!r}... ({len(name)} letters)"
