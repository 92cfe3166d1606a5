"""What transformers refuses, as a `DiveError`."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers

from dive.errors import DiveError

_REFUSALS = (ValueError, TypeError, AttributeError, ImportError, NotImplementedError, OSError)
_TRANSFORMERS = Path(transformers.__file__).parent
_REFUSING = ("generation", "cache_utils.py", "dynamic_module_utils.py", "utils")


@contextmanager
def refusals() -> Iterator[None]:
    """Makes one DiveError of what transformers' `generate` says of its arguments.

    An error of the model's forward, or of what the caller handed over, keeps its kind.
    """
    try:
        yield
    except DiveError:
        raise
    except _REFUSALS as error:
        files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        inside = [f.relative_to(_TRANSFORMERS).parts[0] for f in files
                  if f.is_relative_to(_TRANSFORMERS)]  # fmt: skip
        last = files[-1].is_relative_to(_TRANSFORMERS)
        if not (last and inside[-1] in _REFUSING and "generation" in inside):
            raise
        raise DiveError(f"transformers refuses this call of generate: {error}") from error
