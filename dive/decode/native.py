"""The door to `dive._C`, the compiled kernels: which is found, and why none is.

The extension is imported at first use. A checkout that was not built, or an installation with
DIVE_BUILD_EXT=0, has none, and one that was built for another machine or Python cannot be loaded:
one warning with the reason, then PyTorch.
"""

import importlib
import logging
import platform
from collections.abc import Sequence
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
    """What there is of `dive._C`.

    state: LOADED, NOT_BUILT (there is no file for this Python) or NOT_LOADABLE (there is one, and
        the loader refuses it). reason: empty where it is loaded; else one line with what lies
        there, the loader's own words, and what to do.
    """

    module: ModuleType | None
    state: str
    reason: str = ""


@cache
def find() -> Found:
    """`dive._C` by an attempt to load it."""
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
    """The builds for other Pythons that lie where this one would, in words."""
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
    """`dive._C`, or None; the first call warns where it is missing or cannot be loaded."""
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
    """How the extension was built and what it runs on this machine; None where it is missing."""
    module = load()
    return None if module is None else module.build_info()


class PackedSteering(NamedTuple):
    """One layer's steering as `steer_step` takes it: weights for the kernel, or for PyTorch."""

    compiled: "_C.Steering | None"
    tensors: tuple[Tensor, ...]  # down, down_bias, up, static, scale; empty where compiled
    activation: str
    norm_preserving: bool
    eps: float


def pack_steering(
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor | float,
    *,
    dtype: torch.dtype | None = None,
    activation: str = "silu",
    norm_preserving: bool = False,
    eps: float = 1e-6,
) -> PackedSteering:
    """A copy of one layer's weights in the order in which the kernel reads them.

    down [R, D], down_bias [R], up [D, R], static [D], scale [] as in `dive.ops.steer`; R <= 128.
    dtype: what the weights of the two products are rounded to, the stream's or float32; None
    leaves them as they are. Later changes of the tensors have no effect. DiveError on bad input.
    """
    module = load()
    with torch.no_grad():
        if dtype is not None:
            down, up = down.to(dtype), up.to(dtype)
        number = float(scale)
        if module is not None:
            try:
                compiled = module.Steering(
                    down,
                    down_bias,
                    up,
                    static,
                    number,
                    activation=activation,
                    norm_preserving=norm_preserving,
                    eps=eps,
                )
            except ValueError as error:
                raise DiveError(f"pack_steering: {error}") from None
            return PackedSteering(compiled, (), activation, norm_preserving, eps)
        tensors = (down, down_bias, up, static, torch.tensor(number))
        copies = tuple(tensor.detach().clone() for tensor in tensors)
        return PackedSteering(None, copies, activation, norm_preserving, eps)


def steer_step(
    residual: Tensor,
    delta: Tensor | None = None,
    steering: PackedSteering | Sequence[PackedSteering | None] | None = None,
    norm_weight: Tensor | None = None,
    out: Tensor | None = None,
    *,
    norm_eps: float = 1e-6,
    norm_plus_one: bool = False,
    mask: Tensor | None = None,
) -> Tensor | None:
    """One decode step's [residual add + steering + RMSNorm] over rows; writes `residual` in place.

    residual [B, D] becomes r' = steer(residual + delta), and rmsnorm(r') is returned, in `out`
    where one is given; None without `norm_weight`. All of one dtype (float32, bfloat16, float16),
    on the CPU, each row's numbers one after another.
    delta [B, D]: what attention or MLP adds; None adds nothing.
    steering: one for all rows, or one or None for each row; None steers no row.
    norm_weight [D], in residual's dtype or float32. norm_plus_one=False is Llama's norm,
    weight * round(x / rms), True is Gemma's, round(x / rms * (1 + weight)).
    mask [B] bool: rows that are not True are added and normed but not steered.

    Knows no gradient: a tensor that requires one is refused while gradients are recorded.
    """
    if torch.is_grad_enabled():
        for name, tensor in (("residual", residual), ("delta", delta), ("out", out)):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                raise DiveError(f"steer_step: {name} requires a gradient, want torch.no_grad()")
    if out is None and norm_weight is not None:
        out = torch.empty_like(residual, memory_format=torch.contiguous_format)
    module = load()
    if module is None:
        _torch_step(residual, delta, steering, norm_weight, out, norm_eps, norm_plus_one, mask)
        return out
    compiled: Any
    if isinstance(steering, PackedSteering):
        compiled = steering.compiled
    elif steering is None:
        compiled = None
    else:
        compiled = [None if one is None else one.compiled for one in steering]
    try:
        module.steer_step(
            residual,
            delta,
            compiled,
            norm_weight,
            out,
            norm_eps=norm_eps,
            norm_plus_one=norm_plus_one,
            mask=mask,
        )
    except ValueError as error:
        raise DiveError(f"steer_step: {error}") from None
    return out


@torch.no_grad()
def _torch_step(
    residual: Tensor,
    delta: Tensor | None,
    steering: PackedSteering | Sequence[PackedSteering | None] | None,
    norm_weight: Tensor | None,
    out: Tensor | None,
    norm_eps: float,
    norm_plus_one: bool,
    mask: Tensor | None,
) -> None:
    from dive.reference import steer

    if delta is not None:
        residual += delta
    rows = residual.shape[0]
    if isinstance(steering, PackedSteering):
        parts = [(slice(None), steering)]
    else:
        parts = [(slice(i, i + 1), one) for i, one in enumerate(steering or ()) if one is not None]
        if steering is not None and len(steering) != rows:
            raise DiveError(f"steer_step: steering has {len(steering)} entries, want {rows}")
    for part, one in parts:
        residual[part] = steer(
            residual[part],
            *one.tensors,
            mask=None if mask is None else mask[part],
            activation=one.activation,
            norm_preserving=one.norm_preserving,
            eps=one.eps,
        )
    if norm_weight is not None and out is not None:
        x = residual.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm_eps)
        if norm_plus_one:
            out.copy_(x * (1.0 + norm_weight.float()))
        else:
            out.copy_(norm_weight * x.to(residual.dtype))
