"""The content of a backbone's folder as loaders see it: the files that they read, and the dtype."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from dive.backbone.load import source_of
from dive.errors import DiveError
from dive.files import digests
from dive.files.input import read_file

# The files that the loaders of models, tokenizers and processors read. Notes, logs and results in
# the same folder do not count.
_WEIGHTS = re.compile(r"(model|pytorch_model|adapter_model)\b.*\.(safetensors|bin)")
_OTHERS = re.compile(
    r".*(config|token|vocab|template|merges|bpe|codes|normalizer|tekken|emoji|word_)[^/]*\.(json|txt)"
    r"|dict\.txt|.*\.index\.json|.*\.(jinja|model(\.v\d+)?|py|tiktoken|spm|bpe|vocab)"
)
_MAX_CONFIG = 64 << 20  # bytes


def backbone_file_digests(backbone: str, verify: bool = False) -> dict[str, Any]:
    """Digests of the files in a backbone's folder, or name and commit of a repository on the hub.

    Neither the location of the folder nor the spelling of its path counts.

    verify: large files are read whole, and not sampled (`dive.files.digests.sampled`).

    Raises:
        DiveError: no such folder, or a file in it that cannot be read.
    """
    source = source_of(backbone)
    folder = Path(source)
    if not folder.is_dir():
        config = _config_on_hub(source)
        return {"backbone": source, "backbone_commit": config and config.parent.name}
    more = _config_of(folder / "config.json").get("transformers_weights")  # under another name
    found: dict[str, dict[str, str]] = {"backbone_weights": {}, "backbone_files": {}}
    # further chat templates lie in a folder of their own
    for path in sorted([*folder.glob("*"), *folder.glob("*/*.jinja")]):
        name = path.relative_to(folder).as_posix()
        if _WEIGHTS.fullmatch(name) or name == more:
            kind = "backbone_weights"
        elif _OTHERS.fullmatch(name):
            kind = "backbone_files"
        else:
            continue
        if path.is_file():
            found[kind][name] = digests.whole(path) if verify else digests.sampled(path)
    return {**found}


def dtype_in_use(backbone: str, dtype: str) -> str:
    """The name of the dtype that `load_backbone` will load in; "auto" where the weights decide.

    dtype: as `load_backbone` takes it, "auto" or the name of a torch dtype.
    """
    if dtype == "auto":
        source = source_of(backbone)
        path = Path(source) / "config.json" if Path(source).is_dir() else _config_on_hub(source)
        config = {} if path is None else _config_of(path)
        if "quantization_config" in config:  # whose loader may choose another
            return dtype
        dtype = next((config[n] for n in ("dtype", "torch_dtype") if config.get(n)), dtype)
    named = getattr(torch, str(dtype).removeprefix("torch."), None)
    return str(named).removeprefix("torch.") if isinstance(named, torch.dtype) else "auto"


def _config_on_hub(name: str) -> Path | None:
    """Path of the config.json of the current commit of a repository on the hub."""
    from transformers.utils import cached_file

    try:
        path = cached_file(name, "config.json")
    except (OSError, ValueError):
        return None  # loading it reports what is wrong
    return None if path is None else Path(path)


def _config_of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_file(path, _MAX_CONFIG))
    except (OSError, ValueError, RecursionError, DiveError):
        return {}  # loading reports it
    return found if isinstance(found, dict) else {}
