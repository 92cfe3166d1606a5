"""vLLM itself, imported on use: its version, its device, and whether it has what dive calls."""

import os
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from dive.errors import DiveError

OLDEST = (0, 32)
OTHERS = "engine 'transformers' or 'dive._C' writes these reports without vLLM"
# module -> names in it that dive calls; all are public in 0.32
_CALLED: Mapping[str, tuple[str, ...]] = {
    "vllm": ("LLM", "SamplingParams", "ModelRegistry", "__version__"),
    "vllm.engine.arg_utils": ("EngineArgs",),
    "vllm.lora.request": ("LoRARequest",),
    "vllm.platforms": ("current_platform",),
    "vllm.renderers": ("BaseRenderer",),
    "vllm.sampling_params": ("RequestOutputKind",),
    "vllm.v1.engine.llm_engine": ("LLMEngine",),
}


def check_installed() -> str:
    """The version of vLLM.

    Raises:
        DiveError: vLLM is not installed, cannot be imported, is older than 0.32, or lacks a name
            that dive calls.
    """
    # vLLM would send a description of the machine to its makers; dive sends nothing
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import_module("vllm")
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise DiveError(f"vLLM cannot be imported here: {error}") from error
        raise DiveError(
            'engine is "vllm", and vLLM is not installed: pip install "dive-mrg[vllm]" (in an '
            f"environment of its own, as it pins torch and transformers); {OTHERS}"
        ) from None
    except Exception as error:  # of its compiled parts, or of a library that it pins
        raise DiveError(f"vLLM cannot be imported here: {error}") from error
    found = str(called("vllm", "__version__"))
    number = re.match(r"(\d+)\.(\d+)", found)
    # a build from source may not know its version; what it has is looked at below
    if number and (0, 0) < (int(number[1]), int(number[2])) < OLDEST:
        raise DiveError(f"vLLM is {found}, want 0.32 or newer; {OTHERS}")
    for module, names in _CALLED.items():
        for name in names:
            called(module, name)
    return found


def called(module: str, name: str) -> Any:
    """A name of vLLM.

    Raises:
        DiveError: this version does not have it.
    """
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DiveError(
            f"vLLM {_version()} has no {module}.{name}, which dive calls, want another version, "
            f"from 0.32 on; {OTHERS}"
        ) from error


def moved(what: str) -> DiveError:
    """The error about a vLLM whose inner parts are not those that dive's plugin uses."""
    return DiveError(
        f"vLLM {_version()} {what}, so that dive cannot steer in it, want another version, from "
        "0.32 on"
    )


def _version() -> str:
    try:
        return str(getattr(import_module("vllm"), "__version__", "unknown"))
    except ImportError:
        return "unknown"


def check_device(device: str) -> None:
    """Raise DiveError where `device` ("auto", "cpu", "cuda") is not what this vLLM computes on."""
    own = str(called("vllm.platforms", "current_platform").device_type)
    if device in ("auto", own):
        return
    if device == "map" or ":" in device:
        raise DiveError(
            f"device is {device!r}, and vLLM chooses its GPUs itself: want auto, with "
            "CUDA_VISIBLE_DEVICES in the environment and tensor_parallel_size among the engine's "
            "options"
        )
    raise DiveError(f"device is {device!r}, and this vLLM computes on {own!r}: want auto")


def check_architecture(source: str, config: Any) -> None:
    """Raise DiveError where vLLM has no model for a backbone's configuration."""
    names = list(getattr(config, "architectures", None) or [])
    known = called("vllm", "ModelRegistry").get_supported_archs()
    if not any(name in known for name in names):
        raise DiveError(
            f"{source}: vLLM {called('vllm', '__version__')} has no model for "
            f"{', '.join(names) or config.model_type}; {OTHERS}"
        )
