"""Renamed arguments and attributes: the old name works for one more release and warns.

The category is FutureWarning, because Python hides a DeprecationWarning outside `__main__`.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

_Call = TypeVar("_Call", bound=Callable[..., Any])


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warns that `old` is called `new` now.

    stacklevel: as in `warnings.warn`; 3 is the caller of the function that calls this one.
    """
    warnings.warn(
        f"{old} is called {new} now; the old name goes with the next release",
        FutureWarning,
        stacklevel=stacklevel,
    )


def renamed_arguments(**new_names: str) -> Callable[[_Call], _Call]:
    """Decorator of a function whose keyword arguments were renamed: old name -> new name.

    The function raises TypeError where a call passes both.
    """

    def decorate(call: _Call) -> _Call:
        @functools.wraps(call)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            for old in new_names.keys() & kwargs.keys():
                new = new_names[old]
                if new in kwargs:
                    raise TypeError(
                        f"{call.__qualname__}() got both {new!r} and its old name {old!r}"
                    )
                warn_renamed(f"{call.__qualname__}({old}=...)", f"{new}=...")
                kwargs[new] = kwargs.pop(old)
            return call(*args, **kwargs)

        return wrapped  # type: ignore[return-value]

    return decorate


def renamed_attribute(old: str, new: str) -> property:
    """A class attribute `old` that reads attribute `new` of the same object, with the warning."""

    def get(self: Any) -> Any:
        warn_renamed(f"{type(self).__name__}.{old}", new)
        return getattr(self, new)

    return property(get, doc=f"Old name of `{new}`.")
