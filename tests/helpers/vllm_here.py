"""vLLM in this process and on the CPU, for tests of reports; none of it imports vLLM itself."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from vllm_engines import CPU, write_backbone

for _name, _value in CPU.items():
    os.environ.setdefault(_name, _value)

needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]
EAGER = {"enforce_eager": True}  # options of an engine that starts in seconds
_TOWER, _INSIDE = "vision_tower.", "vision_model."


def save_served(family: str, folder: Path) -> Path:
    """The folder of a tiny backbone of `tiny_more.FAMILIES`, or "Llama", that vLLM can run.

    CLIP's and SigLIP's weights have the names of checkpoints on the hub, which vLLM reads, and not
    those that newer transformers write.
    """
    write_backbone(family, folder)
    weights = load_file(folder / "model.safetensors")
    for name in [*weights]:
        before, found, rest = name.partition(_TOWER)
        nested = rest.startswith(("embeddings.", "encoder.", "pre_layr", "post_layer"))
        if family != "InternVL" and found and nested:
            weights[f"{before}{_TOWER}{_INSIDE}{rest}"] = weights.pop(name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
