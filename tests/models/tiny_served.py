"""The tiny backbones in sizes that vLLM's attention takes: heads of 32 numbers instead of 8."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import tiny
import tiny_more
from safetensors.torch import load_file, save_file

HIDDEN = 128  # 4 heads of 32
_narrow = tiny.text_config


def _wide(tokenizer: Any, **more: Any) -> dict[str, Any]:
    if "head_dim" in more:
        more["head_dim"] = 32
    if "mrope_section" in (rope := more.get("rope_parameters") or {}):
        more["rope_parameters"] = {**rope, "mrope_section": [4, 6, 6]}
    return _narrow(tokenizer, **more)


def save_served(family: str, folder: str | Path) -> Path:
    """The folder of a tiny backbone of `tiny_more.FAMILIES`, or of "Llama", which has no images."""
    writer = {**tiny_more.FAMILIES, "Llama": tiny.save_tiny_llama}[family]
    with (
        patch.multiple(tiny, HIDDEN=HIDDEN, text_config=_wide),
        patch.multiple(tiny_more, HIDDEN=HIDDEN, text_config=_wide),
    ):
        return _as_on_the_hub(writer(Path(folder)), family)


def _as_on_the_hub(folder: Path, family: str) -> Path:
    """The same folder with the vision tower's weights under the names that checkpoints on the hub
    have and vLLM reads, and not those that transformers 5.19 writes."""
    weights = load_file(folder / "model.safetensors")
    if family == "Gemma 3":  # whose wide embeddings would have it repeat its last token
        for name in (one for one in weights if one.endswith("embed_tokens.weight")):
            weights[name] *= 0.1
    for name in [*weights]:
        head, found, rest = name.partition("vision_tower.")
        if (
            family != "InternVL"
            and found
            and rest.startswith(("embeddings.", "encoder.", "pre_layr", "post_layer"))
        ):
            weights[f"{head}vision_tower.vision_model.{rest}"] = weights.pop(name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
