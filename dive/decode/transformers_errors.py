"""Refusals of transformers' `generate`, as a `DiveError`."""

import reprlib
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from dive.decode.whole_config import WholeConfig
from dive.errors import DiveError

_REFUSALS = (ValueError, TypeError, AttributeError, ImportError, NotImplementedError, OSError,
             ArithmeticError, LookupError, AssertionError, RuntimeError)  # fmt: skip
_DIVE = Path(__file__).parents[1]
_TRANSFORMERS = Path(transformers.__file__).parent
_TORCH = Path(torch.__file__).parent
_PYTHON = Path(sysconfig.get_path("stdlib"))
_FORWARD = {"forward", "_call_impl"}
# errors of the machine and of broken weights; torch has no classes of its own for all of them
_NOT_OF_THE_CALL = ("out of memory", "allocate", "cuda error", "hip error", "cudnn", "cublas",
                    "nccl", "probability tensor")  # fmt: skip


@contextmanager
def refusals(given: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turns an error of transformers' `generate` about its arguments into a DiveError.

    given: the arguments, by name, which the error lists.
    An error of the model's forward, or of the caller's own objects, keeps its type, and so does one
    of the machine (out of memory) or of broken weights (NaN where a token is drawn).
    """
    try:
        yield
    except DiveError:
        raise
    except _REFUSALS as error:
        if not _refuses(error):
            raise
        requested = ", ".join(f"{k}={_shown(v)}" for k, v in _requested(given or {}).items())
        said = str(error) or type(error).__name__
        more = f" (requested: {requested})" if requested else ""
        raise DiveError(f"transformers refuses this call of generate: {said}{more}") from error


def _refuses(error: Exception) -> bool:
    """Whether transformers' own code for `generate` raised it, before or between forwards."""
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
        message = str(error).lower()
        if any(word in message for word in _NOT_OF_THE_CALL):
            return False
    frames = [
        (_owner(frame.filename), frame) for frame in traceback.extract_tb(error.__traceback__)
    ]
    inside = [index for index, (owner, frame) in enumerate(frames)
              if owner == "transformers" and _part(frame.filename) == "generation"]  # fmt: skip
    if not inside:
        return False
    after = frames[inside[0] :]
    if any(owner == "caller" or frame.name in _FORWARD for owner, frame in after):
        return False
    # after the last frame of dive's own, whose mistakes are no refusal
    own = [index for index, (owner, _) in enumerate(after) if owner == "dive"]
    return any(owner == "transformers" for owner, _ in after[own[-1] + 1 if own else 0 :])


def _shown(value: Any) -> str:
    """A short text for a value; of a model its class."""
    plain = isinstance(value, (str, int, float, list, tuple, dict, set))
    return reprlib.repr(value) if plain else type(value).__name__


def _owner(filename: str) -> str:
    path = Path(filename)
    for name, root in (("transformers", _TRANSFORMERS), ("torch", _TORCH), ("dive", _DIVE)):
        if path.is_relative_to(root):
            return name
    packaged = {"site-packages", "dist-packages"} & set(path.parts)
    if filename.startswith("<frozen") or (path.is_relative_to(_PYTHON) and not packaged):
        return "python"
    return "caller"


def _part(filename: str) -> str:
    return Path(filename).relative_to(_TRANSFORMERS).parts[0]


def _requested(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the caller gave, by name or in a generation_config."""
    own = given.get("generation_config")
    config = own.requested() if isinstance(own, WholeConfig) else {}
    if isinstance(own, GenerationConfig) and not config:
        plain = vars(GenerationConfig())
        config = {k: v for k, v in vars(own).items()
                  if v is not None and k in plain and v != plain[k] and k[0] != "_"}  # fmt: skip
    kept = {**config, **{k: v for k, v in given.items() if k != "generation_config"}}
    return {k: v for k, v in kept.items()
            if v is not None and not isinstance(v, torch.Tensor)
            and k != "transformers_version"}  # fmt: skip
