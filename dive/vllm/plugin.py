"""The entry point by which vLLM finds dive (`vllm.general_plugins`), in every one of its processes.

It adds a name per steered class to vLLM's registry and imports none of them, as servers without
dive call it, too. A server opts in by `--hf-overrides '{"architectures": ["Dive..."]}'`; where dive
is not installed that name is unknown, and the server does not start.
"""

PREFIX = "Dive"


def register() -> None:
    """Registers the steered classes; may be called again."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for family in sorted(known):
        if not family.startswith(PREFIX) and PREFIX + family not in known:
            ModelRegistry.register_model(PREFIX + family, f"dive.vllm.models:{PREFIX}{family}")
