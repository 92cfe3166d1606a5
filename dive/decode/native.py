"""The access to `dive._C`, the compiled kernels: finding it, and the reason where none is found.

The extension is imported at first use. A checkout that was not built, or an installation with
DIVE_BUILD_EXT=0, has none, and one that was built for another machine or Python cannot be loaded:
one warning states the reason, and PyTorch decodes.
"""

import importlib
import logging
import platform
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dive.errors import DiveError

if TYPE_CHECKING:
    from dive import _C

logger = logging.getLogger(__name__)

# the states of `Found`
LOADED, NOT_BUILT, NOT_LOADABLE = "loaded", "not built", "not loadable"


class Found(NamedTuple):
    """The result of the search for `dive._C`.

    state: LOADED, NOT_BUILT (there is no file for this Python) or NOT_LOADABLE (there is one, and
        the loader refuses it). reason: empty where it is loaded; else one line with the
        files that were found, the loader's message, and the remedy.
    """

    module: ModuleType | None
    state: str
    reason: str = ""


@cache
def find() -> Found:
    """Searches for `dive._C` by an attempt to load it."""
    try:
        return Found(importlib.import_module("dive._C"), LOADED)
    except Exception as error:  # of the loader, or of the module's own start
        if isinstance(error, ModuleNotFoundError) and error.name == "dive._C":
            return Found(None, NOT_BUILT, f"dive._C is not built here{_others()}; {_advice()}")
        words = " ".join(str(error).split())
        if not isinstance(error, ImportError):
            words = f"{type(error).__name__}: {words}"
        return Found(
            None, NOT_LOADABLE, f"dive._C is there but cannot be loaded: {words}; {_advice()}"
        )


def _others(folder: Path = Path(__file__).parents[1]) -> str:
    """A phrase that names the builds for other Pythons in the same folder; empty without any."""
    names = sorted(
        path.name for path in folder.glob("_C.*") if path.suffix in (".so", ".pyd", ".dylib")
    )
    if not names:
        return ""
    wanted = f"Python {platform.python_version()} here loads _C{EXTENSION_SUFFIXES[0]}"
    return f" for this Python: {', '.join(names)} is there, and {wanted}"


def _advice(root: Path = Path(__file__).parents[2]) -> str:
    if (root / "setup.py").is_file() and (root / "csrc").is_dir():
        return "`pip install -e .` in the checkout builds it"
    version = ".".join(platform.python_version_tuple()[:2])
    return (
        f"install dive-mrg's wheel for Python {version} and this machine again "
        "(pip install --force-reinstall --no-deps WHEEL)"
    )


def load() -> ModuleType | None:
    """Returns `dive._C` or None; the first call warns where it is missing or cannot be loaded."""
    found = find()
    if found.module is None:
        _warn(found.reason)
    return found.module


@cache
def _warn(reason: str) -> None:
    logger.warning("%s. Decoding runs in PyTorch, which is slower.", reason)


def available() -> bool:
    """Whether the compiled kernels can be used."""
    return load() is not None


def build_info() -> dict[str, Any] | None:
    """The options of the build and its instruction set here; None where it is missing."""
    module = load()
    return None if module is None else module.build_info()


def pack_steering(
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor | float,
    *,
    dtype: torch.dtype,
    device: torch.device,
    engine_device: str,
    activation: str = "silu",
    norm_preserving: bool = False,
    eps: float = 1e-6,
) -> "_C.Steering":
    """One layer's steering weights, copied into the form that the engine's kernels read.

    down [R, D], down_bias [R], up [D, R], static [D] and scale are those of `dive.ops.steer`, on
    any device. dtype: of the model, to which `down` and `up` are rounded. device: of the model's
    weights; engine_device: the same as `DecoderSpec.engine_device` names it. Weights that are on
    the model's GPU stay there: the host reads the scale alone. DiveError names a bad weight.
    """
    module = load()
    if module is None:
        raise DiveError(f"pack_steering: {find().reason}")
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    # the layout of which a GPU's copy is made of whole pieces: `up` is read by its columns
    try:
        return module.Steering(
            down.to(device, dtype).contiguous(),
            down_bias.to(device, torch.float32).contiguous(),
            up.to(device, dtype).t().contiguous().t(),
            static.to(device, torch.float32).contiguous(),
            float(scale),
            activation=activation,
            norm_preserving=norm_preserving,
            eps=eps,
            device=engine_device,
            stream=stream,
        )
    except ValueError as error:
        raise DiveError(f"pack_steering: {error}") from None
