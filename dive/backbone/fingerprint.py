"""The fingerprint of the weights that an adapter was made on: samples, with what PEFT adds to them.

Samples are compared within one step of bfloat16, so a checkpoint is recognised in any dtype, on any
device, and a LoRA is the same merged or not. What cannot be sampled (quantised, offloaded or
sharded weights), or what the loading made up outside the text decoder since the checkpoint lacks it
(a pooling head that nothing uses), is unknown, and an unknown never counts as a difference.
"""

import base64
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dive.backbone.structure import decoder, unwrap
from dive.backbone.tuners import (
    PROMPTED,
    added,
    is_tuner,
    kinds,
    lora_entries,
    own_tensors,
    replaced,
    tuners,
)
from dive.errors import DiveError

# The most weights that are sampled, evenly over the model. No model of today has more: a stride
# through layers of one pattern would leave out the same kinds of weights in each of them.
_TENSORS = 4096
_SAMPLES = 2048  # numbers in all, approximately; at least 3 per weight
MOST_PER_WEIGHT = 8
_STEP = 2.0**-7  # of bfloat16: the most by which rounding to another dtype moves a number
_TINY = 1e-7  # below this float16 rounds more coarsely than bfloat16
_SPARSE = ("shira", "trainable_tokens")  # change few numbers of a weight, which samples hardly meet
_LOADED = "_is_hf_initialized"  # on parameters, by transformers
T = TypeVar("T")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def fingerprint(backbone_or_model: Any) -> dict[str, Any]:
    """The values that `difference` compares; JSON values only, about 5 to 12 kB.

    each: samples per weight. samples: base64 of bfloat16, None where the weights cannot be read;
    active plain LoRA is in them. made_up: indices in that list of weights outside the decoder that
    no checkpoint had. tuners: kinds of active PEFT layers, without merged ones. tuner_samples: of
    their own tensors. folded: all of them are in `samples`.
    """
    model: Any = unwrap(backbone_or_model)
    found = _strided([(weight, changes) for _, weight, changes in _weights(model)])
    each = max(3, min(MOST_PER_WEIGHT, _SAMPLES // max(1, len(found))))
    sorts = kinds(model)
    odd = [one for one in tuners(model) if not _folds(one)]
    folded = PROMPTED not in sorts and not odd
    # weights with a merge that the next forward undoes identify nothing
    stale = any(sign < 0 for one in odd for sign, _ in added(one))
    readable = (
        bool(found) and not stale and not _quantised(model) and all(_plain(w) for w, _ in found)
    )
    indices, unknown = _SampleIndices(), made_up(model) if readable else set()
    samples = [_entries(w, each, changes, indices) for w, changes in found] if readable else []
    own = [
        _entries(tensor, 16, [], indices)
        for one in tuners(model)
        for sign, name in added(one)
        if sign > 0
        for tensor in own_tensors(one, name)
        if _plain(tensor)
    ]
    return {
        "each": each,
        "samples": _text(samples) if readable else None,
        "made_up": [at for at, (weight, _) in enumerate(found) if id(weight) in unknown],
        "tuners": sorts,
        "tuner_samples": _text(own) if own else None,
        "folded": folded,
    }


def difference(made: Any, here: dict[str, Any]) -> str | None:
    """Describe how the weights in use differ from those that the adapter was made on.

    None where no difference is known. `made` is an earlier fingerprint or None.
    """
    if not isinstance(made, dict) or not {"each", "samples", "tuners"} <= made.keys():
        return None
    if made["tuners"] is None:
        return None  # unknown: no difference
    there, now = _at_work(made["tuners"]), _at_work(here["tuners"])
    same_tuners = _same(made.get("tuner_samples"), here["tuner_samples"], 16)
    same = None
    if made["samples"] is not None and here["samples"] is not None and made["each"] == here["each"]:
        # only what both loadings made up: a trained part that was put there is compared
        there_too = made.get("made_up")
        unknown = here["made_up"]
        if isinstance(there_too, list):
            unknown = [at for at in unknown if at in there_too]
        folds = "lora" in made["tuners"] + here["tuners"]
        same = _same(made["samples"], here["samples"], made["each"], unknown, folds)
    if made.get("folded") and here["folded"] and same is not None:
        differs = not same
    elif same_tuners:
        differs = same is False
    else:
        differs = made["tuners"] != here["tuners"] or same_tuners is False
    if not differs:
        return None
    if made["tuners"] == here["tuners"] and (same_tuners or not made["tuners"]):
        return (
            "its weights are not those on which the adapter was made (further trained, or with a "
            "LoRA merged on one side only)"
        )
    if made["tuners"] == here["tuners"]:
        return f"{there} with other weights or another scale where the adapter was made"
    found = f"{there} where the adapter was made, and {now} here"
    one_sided = not (made["tuners"] and here["tuners"])
    sparse = not {*made["tuners"], *here["tuners"]}.isdisjoint(_SPARSE)
    known = (same and not sparse) or (same is False and made.get("folded") and here["folded"])
    if one_sided and not known:
        # what is active on one side may have been merged on the other
        found += "; whether it is merged into the weights is unknown (if it is, all is well)"
    return found


def _at_work(names: list[str]) -> str:
    return f"PEFT's {', '.join(names)} was at work" if names else "nothing of PEFT's was at work"


def sampled_weights(model: Any) -> list[tuple[str, int]]:
    """Name and size of each weight that `fingerprint` samples, in its order, of a model without
    PEFT's layers (on the meta device, say)."""
    return _strided([(name, weight.numel()) for name, weight, _ in _weights(model)])


def compare_samples(
    made: str, here: list[Tensor], each: int, unknown: Collection[int], merged: bool
) -> bool | None:
    """Whether a fingerprint's samples are those of the weights sampled in `here`.

    here: `each` numbers per weight. unknown: indices of weights that are not compared. merged: a
    LoRA is in the samples of either. None where they cannot be compared.
    """
    return _same(made, _text(here), each, unknown, merged)


def _strided(found: list[T]) -> list[T]:
    return found[:: -(-len(found) // _TENSORS)] if found else found


def _weights(
    module: Any, prefix: str = ""
) -> Iterator[tuple[str, Tensor, list[tuple[Any, float, str]]]]:
    """Every weight as the bare model would list it, and what tuners add to it."""
    changes: list[tuple[Any, float, str]] = []
    while is_tuner(module):
        changes += [(module, sign, name) for sign, name in added(module)]
        module = replaced(module)
    for key, weight in module._parameters.items():
        if weight is not None and weight.dim() >= 1:  # norms and biases are trained, too
            yield prefix + key, weight, changes if key == "weight" else []
    for key, child in module._modules.items():
        if child is not None:
            yield from _weights(child, f"{prefix}{key}.")


def _folds(module: Any) -> bool:
    """Return whether a tuner is a plain LoRA of a plain weight, all of which the samples hold."""
    if not added(module):
        return True
    base = replaced(module)
    while is_tuner(base):
        base = replaced(base)
    weight = base._parameters.get("weight")
    nowhere = torch.zeros(0, dtype=torch.long)
    return weight is not None and all(
        lora_entries(module, name, nowhere, weight.shape) is not None for _, name in added(module)
    )


def _quantised(model: Any) -> bool:
    config = getattr(model, "config", None)
    return bool(getattr(model, "is_quantized", False)) or (
        getattr(config, "quantization_config", None) is not None
    )


def _plain(weight: Tensor) -> bool:
    known = type(weight) in (Tensor, nn.Parameter) and weight.dtype in _DTYPES
    return known and weight.device.type != "meta" and weight.numel() > 0


def made_up(model: Any) -> set[int]:
    """The Python ids of weights outside the text decoder that no checkpoint had.

    They have other values at every loading. A decoder without all of its weights is of no use.
    """
    # transformers marks what it has loaded; elsewhere (a copied model, say) nothing is marked
    weights = list(model.parameters())
    if not any(hasattr(one, _LOADED) for one in weights):
        return set()
    parts = [model.get_input_embeddings(), model.get_output_embeddings()]
    try:
        parts.append(decoder(model))
    except DiveError:
        return set()
    parts += tuners(model)  # PEFT's copies of what it trains
    needed = {id(one) for part in parts if part is not None for one in part.parameters()}
    return {id(one) for one in weights if not hasattr(one, _LOADED)} - needed


class _SampleIndices(dict[tuple[torch.device, int, int], Tensor]):
    """Sample indices by (device, size, count), spread over a tensor of that size, on its device.

    They are kept, as a copy to a device waits for the GPU and many tensors have the same size.
    """

    def __missing__(self, key: tuple[torch.device, int, int]) -> Tensor:
        device, size, count = key
        self[key] = sample_indices(size, count).to(device)
        return self[key]


def sample_indices(size: int, count: int) -> Tensor:
    """Indices spread over a tensor of `size` numbers; those of a smaller count come first."""
    return (torch.arange(count) * 2654435761 + 12345) % size  # a step that shares no factor


def _entries(
    weight: Tensor, count: int, changes: list[tuple[Any, float, str]], known: _SampleIndices
) -> Tensor:
    """Samples of a weight, `count` of them spread over it, with what tuners add to them."""
    indices = known[weight.device, weight.numel(), count]
    entries = weight.detach().take(indices)
    for tuner, sign, name in changes:
        more = lora_entries(tuner, name, indices, weight.shape)
        if more is not None:
            entries = entries.float() + sign * more.to(entries.device)
    return entries


def _text(entries: list[Tensor]) -> str:
    # one copy from each device
    by_device: dict[torch.device, list[int]] = {}
    for at, one in enumerate(entries):
        by_device.setdefault(one.device, []).append(at)
    parts: dict[int, Tensor] = {}
    for indices in by_device.values():
        joined = torch.cat([entries[at] for at in indices]).float().cpu()
        sizes = [entries[at].numel() for at in indices]
        parts.update(zip(indices, joined.split(sizes), strict=True))
    whole = torch.cat([parts[at] for at in range(len(entries))])
    return base64.b64encode(whole.bfloat16().view(torch.int16).numpy().tobytes()).decode("ascii")


def _numbers(text: str) -> Tensor | None:
    try:
        data = bytearray(base64.b64decode(text, validate=True))
    except (ValueError, TypeError):
        return None
    if len(data) % 2 or not data:
        return None
    return torch.frombuffer(data, dtype=torch.int16).view(torch.bfloat16).float()


def _same(
    one: str | None,
    other: str | None,
    each: int,
    unknown: Collection[int] = (),
    folded: bool = False,
) -> bool | None:
    """Return whether two lists of samples are of the same tensors, except those at `unknown`.

    None where they cannot be compared.

    folded: a LoRA was added to samples on either side. A sum is as exact as its larger part, so a
    small one of two large ones may differ by more than its own step: by a part of the tensor's RMS.
    """
    if one is None or other is None:
        return None
    first, second = _numbers(one), _numbers(other)
    if first is None or second is None or first.shape != second.shape or len(first) % each:
        return None
    limit = _STEP * torch.maximum(first.abs(), second.abs()) + _TINY
    if folded:
        rms = torch.maximum(*(x.view(-1, each).square().mean(1).sqrt() for x in (first, second)))
        limit = limit + _STEP / 2 * rms.repeat_interleave(each)
    differing = ~((first - second).abs() <= limit).view(-1, each)
    differing[[at for at in unknown if at < len(differing)]] = False
    # a few numbers may move further where a merge rounds, but not most of those of one tensor
    most = int(differing.sum(1).max()) * 2 > each
    return not (most or int(differing.sum()) > 2 + differing.numel() // 200)
