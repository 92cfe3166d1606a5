"""Layers that PEFT put into a model, read without importing PEFT: what they change, and by what.

PEFT's tuners (LoRA and similar methods) replace layers: the model itself computes with them,
whatever wrapper is around it. The same holds for transformers' own `model.add_adapter()`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# computed by PEFT's wrapper around the model, and not by the layers in it
AROUND = ("XLORA", "POLY")
PROMPTED = "adaption_prompt"


def is_tuner(module: Any) -> bool:
    """Return whether PEFT replaced one of the model's own modules by this one."""
    return isinstance(module, nn.Module) and hasattr(type(module), "adapter_layer_names")


def computed_around(configs: Any, active: Any) -> str | None:
    """The method that a PeftModel computes in the wrapper itself ("PREFIX_TUNING"), or None."""
    names = [active] if isinstance(active, str) else list(active)
    for name in names:
        config = configs.get(name)
        kind = str(getattr(getattr(config, "peft_type", ""), "value", ""))
        if getattr(config, "is_prompt_learning", False) or kind in AROUND:
            return kind
        if getattr(config, "alora_invocation_tokens", None) is not None:
            return "activated LoRA (alora_invocation_tokens)"
    return None


def replaced(module: Any) -> Any:
    """The module that a tuner wraps, without what it adds (`added`)."""
    if not hasattr(type(module), "original_module") and "original_module" not in module._modules:
        return module.base_layer
    if "token_adapter" in module._modules:
        return module.token_adapter  # a tuner, too
    copies = module._modules.get("modules_to_save")
    active = [] if module.disable_adapters else list(module.active_adapters)
    if copies is not None and active and active[0] in copies:
        return copies[active[0]]
    return module.original_module


def added(module: Any) -> list[tuple[float, str]]:
    """The adapters that a tuner adds to the weights it wraps, as (sign, name).

    +1 for each active adapter; -1 where it is switched off, and the next forward takes its weights
    out of the layer.
    """
    if not hasattr(module, "get_base_layer"):
        return []
    merged = list(module.merged_adapters)
    if module.disable_adapters:
        return [(-1.0, name) for name in merged]
    if merged:
        return []
    there = {key for store in _stores(module) for key in store}
    return [(1.0, name) for name in module.active_adapters if name in there]


def tuners(module: nn.Module) -> Iterator[Any]:
    """Every tuner of a model, in the order in which its modules are listed."""
    return (part for part in module.modules() if is_tuner(part))


def kinds(module: nn.Module) -> list[str]:
    """The kinds of active tuners in a model, as ["lora"]; [] where all are merged or off."""
    found = {kind_of(one) for one in tuners(module) if any(sign > 0 for sign, _ in added(one))}
    found |= {"modules_to_save" for one in tuners(module) if _saved(one)}
    # not a tuner class; it is not in the model where it is switched off
    found |= {PROMPTED for part in module.modules() if kind_of(part) == PROMPTED}
    return sorted(found)


def kind_of(module: Any) -> str:
    """The kind of a tuner, by the package of its class."""
    parts = type(module).__module__.split(".")  # peft.tuners.lora.layer
    return parts[parts.index("tuners") + 1] if "tuners" in parts[:-1] else type(module).__name__


def own_tensors(module: Any, name: str) -> list[Tensor]:
    """The tensors of one adapter in one tuner, its scaling last."""
    found: list[Tensor] = []
    for store in _stores(module):
        one = dict(store.items()).get(name)
        if isinstance(one, nn.Module):
            found += [p.detach() for p in one.parameters()]
        elif isinstance(one, Tensor):
            found.append(one.detach())
    scaling = getattr(module, "scaling", None)
    if isinstance(scaling, dict) and isinstance(scaling.get(name), (int, float)):
        found.append(torch.tensor([float(scaling[name])]))
    return found


def lora_entries(module: Any, name: str, indices: Tensor, shape: torch.Size) -> Tensor | None:
    """Entries of what a plain LoRA adds to a weight of this shape, at flat indices; float32.

    None for a tuner that adds something else (DoRA, IA3, OFT ...).
    """
    if kind_of(module) != "lora" or name in (getattr(module, "lora_variant", None) or {}):
        return None
    dora = getattr(module, "use_dora", None)
    if isinstance(dora, dict) and dora.get(name):
        return None
    scale = getattr(module, "scaling", {}).get(name)
    turned = bool(getattr(module, "fan_in_fan_out", False))
    if name in (getattr(module, "lora_embedding_A", None) or {}):
        down, up, turned = module.lora_embedding_A[name], module.lora_embedding_B[name], True
    else:
        pair = [getattr(module, part, None) or {} for part in ("lora_A", "lora_B")]
        if any(name not in one or not isinstance(one[name], nn.Module) for one in pair):
            return None
        down, up = (one[name].weight for one in pair)
    down, up = down.detach().flatten(1), up.detach().flatten(1)  # [R, in], [out, R]
    rows, columns = shape[0], shape[1:].numel()
    wanted = (down.shape[1], up.shape[0]) if turned else (up.shape[0], down.shape[1])
    if (rows, columns) != wanted or not isinstance(scale, (int, float)):
        return None
    indices = indices.to(down.device)
    row, column = indices // columns, indices % columns
    out, into = (column, row) if turned else (row, column)
    entries = (up[out].float() * down[:, into].T.float()).sum(1)
    return entries * scale


def state_of(module: Any) -> str:
    """The state of a tuner without its tensors: its active and merged adapters and their scales."""
    scaling = getattr(module, "scaling", None)
    parts = [getattr(module, "active_adapters", ()), getattr(module, "merged_adapters", ())]
    off = bool(getattr(module, "disable_adapters", False))
    return repr([kind_of(module), [*map(list, parts)], off, scaling])


def _saved(module: Any) -> bool:
    copies = module._modules.get("modules_to_save")
    return copies is not None and replaced(module) is not module.original_module


def _stores(module: Any) -> list[Any]:
    names = (*type(module).adapter_layer_names, *getattr(type(module), "other_param_names", ()))
    found = [getattr(module, name, None) for name in names if "." not in name]
    return [one for one in found if hasattr(one, "keys")]
