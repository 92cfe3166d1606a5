"""A digest of the exact weights that a model computes with, which a GPU makes in a moment.

`dive.backbone.fingerprint` recognises a backbone in another dtype or with a LoRA merged, by
samples. This one changes with every bit: a training that is resumed on anything else gives another
adapter.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dive.backbone.fingerprint import made_up
from dive.backbone.structure import unwrap

_CHUNK = 1 << 22  # numbers that are summed at a time: 32 MiB of int64, three times over
_STEP = 2654435761  # odd, so that every position has a weight of its own


@torch.no_grad()
def weights_digest(backbone_or_model: Any) -> str:
    """A digest of all parameters and stored buffers, their dtypes and shapes included.

    What cannot be read (sharded or offloaded weights) counts by its name, dtype and shape, and what
    the loading made up outside the decoder (see `dive.backbone.fingerprint`) not at all. Two sums
    per chunk of 4,194,304 numbers stand for its bits: exact, the same on every device, and no
    defence against somebody who constructs weights with the same sums.
    """
    model: Any = unwrap(backbone_or_model)
    unknown = made_up(model)
    digest = hashlib.sha256()
    for name, tensor in _stored(model):
        if id(tensor) in unknown:
            continue
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if type(tensor) in (Tensor, nn.Parameter) and tensor.device.type != "meta":
            digest.update(str(_sums(tensor)).encode())
    return digest.hexdigest()[:32]


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a checkpoint of the model, by name."""
    for path, module in sorted(model.named_modules(), key=lambda pair: pair[0]):
        buffers = {
            name: tensor
            for name, tensor in module._buffers.items()
            if name not in module._non_persistent_buffers_set
        }
        for name, tensor in {**module._parameters, **buffers}.items():
            if tensor is not None:
                yield f"{path}.{name}", tensor


def _sums(tensor: Tensor) -> list[list[int]]:
    flat = tensor.detach().contiguous().reshape(-1)
    size = flat.element_size()
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(size)
    flat = flat.view(torch.uint8 if whole is None else whole)
    found = []
    for start in range(0, flat.numel(), _CHUNK):
        values = flat[start : start + _CHUNK].long()
        positions = torch.arange(len(values), device=values.device) * _STEP + 1
        found.append(torch.stack([values.sum(), (values * positions).sum()]))
    return torch.stack(found).tolist() if found else []
