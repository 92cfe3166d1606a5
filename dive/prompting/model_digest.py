"""Digests of everything about a loaded backbone that results depend on."""

import json
import os
from typing import Any

import PIL
import torch
import transformers

from dive import __version__
from dive.backbone.structure import unwrap
from dive.backbone.weights_digest import weights_digest
from dive.files.digests import of_json
from dive.prompting.prompter import Prompter


def versions() -> dict[str, str]:
    """Versions of the libraries on which reports and adapters depend."""
    return {
        "dive": __version__,
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "Pillow": str(PIL.__version__),
    }


def computation_digests(prompter: Prompter) -> dict[str, Any]:
    """Digests of a prompter's backbone: weights, settings, tokenizer and image processor.

    With its dtype and kind of device, the number of ranks and the versions of the libraries.
    """
    backbone = prompter.backbone
    model: Any = unwrap(backbone)
    config = json.loads(model.config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    return {
        "weights_hash": weights_digest(model),
        "config_hash": of_json([config, prompter.eos_token_ids]),
        "processor_hash": of_json(_processing(prompter)),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "device": backbone.device.type,
        "ranks": int(os.environ.get("WORLD_SIZE", 1)),
        "versions": versions(),
    }


def _processing(prompter: Prompter) -> list[Any]:
    """All settings of tokenizer and image processor."""
    tokenizer, images = prompter.tokenizer, getattr(prompter.processor, "image_processor", None)
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(fast, "to_str"):
        known = json.loads(fast.to_str())
        for name in ("truncation", "padding"):  # left over from the last call
            known.pop(name, None)
    else:
        known = sorted(tokenizer.get_vocab().items())
    return [
        type(prompter.processor).__name__,
        type(tokenizer).__name__,
        known,
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        None if images is None else [type(images).__name__, images.to_dict()],
        prompter.image_settings,
    ]
