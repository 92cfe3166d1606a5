"""An adapter as the folder that vLLM's LoRA loader reads, and the arguments of its server."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors.torch import save

from dive.adapter.adapter import SteeringAdapter, as_adapter
from dive.backbone.without_weights import model_without_weights
from dive.errors import DiveError, checks
from dive.files.atomic import check_folder, write_together
from dive.files.lock import hold_folder
from dive.vllm.card import card_of
from dive.vllm.packing import TARGET, LayerNumbers, pack, pack_card
from dive.vllm.plugin import PREFIX
from dive.vllm.settings import ENTRY, ServerSteering

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
RANKS = (1, 8, 16, 32, 64, 128)  # of --max-lora-rank, up to dive's own most
_NAME = "base_model.model.dive.{}.lora_{}.weight"
CARD_TENSOR = _NAME.format("card", "A")


@dataclass(frozen=True)
class Exported:
    """An adapter in the form that vLLM loads.

    folder: where it lies. sha256: of the adapter's own adapter.safetensors. architecture: of the
    server. steering: the settings that the server must have.
    """

    folder: Path
    sha256: str
    rank: int
    architecture: str
    steering: ServerSteering


def export(
    adapter: SteeringAdapter | str | PathLike[str],
    folder: str | PathLike[str],
    *,
    backbone: str | PathLike[str] | None = None,
    revision: str | None = None,
) -> Exported:
    """Writes an adapter as the folder that vLLM loads.

    backbone: the folder or hub id of the model that is served, whose config.json is read; default:
        the hub id under which the adapter knows it.
    revision: of the backbone on the hub; default: the adapter's, with its own hub id.

    Raises:
        DiveError: no adapter, no backbone, or `folder` holds another adapter (vLLM's prefix cache
            knows adapters by their folders, and would give the states of one to the other).
    """
    given, folder = as_adapter(adapter), checks.path("folder", folder)
    facts = given.metadata["backbone"]
    source = backbone or (facts.get("revision") and facts.get("name"))
    revision = revision or (None if backbone else facts.get("revision"))
    if not source:
        raise DiveError(
            "the adapter does not know where its backbone is, want backbone: its folder or hub id "
            "(--backbone)"
        )
    model = model_without_weights(source, revision)
    given.check_backbone(model)
    card = card_of(given, model)
    rank = max(given.config.rank, 1)
    tensors = {}
    for index, layer in given.layers.items():
        parts: Any = layer
        tensors[f"layers.{index}.{TARGET}"] = pack(
            LayerNumbers(
                parts.down.detach(),
                parts.up.detach(),
                parts.down_bias.detach(),
                parts.static.detach(),
                (parts.scale * parts.sigma).detach(),
            )
        )
    tensors["card"] = pack_card(card, rank)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": [TARGET],
        "bias": "none",
        "base_model_name_or_path": facts.get("name"),
        "dive": {name: card[name] for name in ("dive_version", "sha256", "layers", "steering")},
    }
    weights = {
        _NAME.format(name, part): tensor.contiguous()
        for name, pair in tensors.items()
        for part, tensor in zip("AB", pair, strict=True)
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    files: dict[str | Path, bytes] = {
        folder / WEIGHTS_FILE: save(weights),
        folder / CONFIG_FILE: text.encode("utf-8"),
    }
    check_folder(folder)
    with hold_folder(folder, wait=10.0):
        if _to_write(files, card["sha256"]):
            write_together(files)
    return Exported(
        folder,
        card["sha256"],
        rank,
        architecture(model.config),
        ServerSteering.of_adapter(given.config),
    )


def exported_sha256(folder: str | PathLike[str]) -> str | None:
    """The adapter that a folder holds for vLLM, by its sha256; None where it holds none."""
    try:
        found = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
        return str(found["dive"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _to_write(files: Mapping[str | Path, bytes], sha256: str) -> bool:
    """Whether these files are still to be written.

    A server may read a folder that it knows at any time: not even the same bytes are written again.

    Raises:
        DiveError: there are others.
    """
    paths = [Path(path) for path in files]
    if not any(path.exists() for path in paths):
        return True
    if all(path.is_file() and path.read_bytes() == files[path] for path in paths):
        return False
    folder = paths[0].parent
    there = exported_sha256(folder)
    what = f"the adapter {there[:12]}" if there else "something else"
    if there == sha256:
        what = "this adapter as another version of dive wrote it, or for another backbone"
    raise DiveError(
        f"{folder} holds {what}, want a new folder: a server that knows the old one by this "
        "folder would go on with its cached states"
    )


def architecture(hf_config: Any) -> str:
    """The name of the steered class that serves a model of this configuration."""
    named = getattr(hf_config, "architectures", None)
    if not named:
        raise DiveError("the backbone's config.json names no architecture, want one")
    return PREFIX + str(named[0]).removeprefix(PREFIX)


def server_arguments(exported: list[Exported], max_loras: int | None = None) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM` for a server of these adapters.

    max_loras: adapters in one batch; default: all of them.

    Raises:
        DiveError: they cannot be served together.
    """
    if not exported:
        raise DiveError("there is no adapter to serve")
    first = exported[0]
    for other in exported[1:]:
        if other.architecture != first.architecture:
            raise DiveError(
                f"{other.folder} is of {other.architecture}, and {first.folder} of "
                f"{first.architecture}, want adapters of one backbone"
            )
        differs = first.steering.difference(vars(other.steering))
        if differs is not None:
            raise DiveError(
                f"{other.folder} wants {differs.replace('here', f'{first.folder}')}: a server has "
                "one value for all adapters, want a server for each"
            )
    override = first.steering.as_override()
    return {
        "hf_overrides": {
            "architectures": [first.architecture],
            **({ENTRY: override} if override else {}),
        },
        "enable_lora": True,
        "lora_target_modules": [TARGET],
        "max_loras": max_loras or len(exported),
        "max_lora_rank": max_lora_rank(max(one.rank for one in exported)),
    }


def max_lora_rank(rank: int) -> int:
    """The least --max-lora-rank that vLLM has for adapters up to this rank."""
    return next(one for one in RANKS if one >= rank)
