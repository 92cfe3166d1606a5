"""How an adapter lies in the two tensors per module that vLLM's LoRA manager loads and keeps.

vLLM casts both to the model's dtype on the way. `down` and `up` are operands of products and are
rounded to that dtype everywhere (`dive.ops.steer`), so they travel as they are. Everything else is
float32 in the operator, and travels as bytes: a whole number from 0 to 255 is exact in every dtype
that a model runs in.

    lora_A [R, D + E] = [down | bytes of (down_bias [R], static [D], scale []), padded, in R rows]
    lora_B [D, R]     = up

Rank 0 has one row of zeros. Nothing else is added, so rank 16 stays a LoRA of rank 16.
"""

import json
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dive.errors import DiveError

TARGET = "dive_steer"  # of --lora-target-modules: the name of each module that holds adapters
_MOST_BYTES = 16 << 20  # of a card; one has some 20 kB


@dataclass(frozen=True)
class LayerNumbers:
    """What the operator is given for one layer.

    down [R, D], up [D, R]; down_bias [R], static [D] and scale [] in float32.
    """

    down: Tensor
    up: Tensor
    down_bias: Tensor
    static: Tensor
    scale: Tensor


def packed_width(rank: int, width: int) -> int:
    """The second size of lora_A, D + E."""
    return width + -(-4 * (rank + width + 1) // rank)


def pack(layer: LayerNumbers) -> tuple[Tensor, Tensor]:
    """Returns lora_A and lora_B, float32 on the CPU."""
    rank, width = layer.down.shape
    held = max(rank, 1)
    down, up, bias = torch.zeros(held, width), torch.zeros(width, held), torch.zeros(held)
    down[:rank], up[:, :rank], bias[:rank] = layer.down, layer.up, layer.down_bias
    exact = torch.cat([bias, layer.static.float().cpu(), layer.scale.float().cpu().reshape(1)])
    return torch.cat([down, _as_numbers(exact.view(torch.uint8), held)], 1), up


def unpack(lora_a: Tensor, lora_b: Tensor) -> LayerNumbers:
    """The reverse of `pack`; down and up in the dtype that they have here.

    Raises:
        DiveError: the tensors are not what `pack` made.
    """
    width, rank = lora_b.shape if lora_b.dim() == 2 else (0, 0)
    if not rank or lora_a.shape != (rank, packed_width(rank, width)):
        raise DiveError(
            f"tensors {[*lora_a.shape]} and {[*lora_b.shape]} are no layer of an adapter, want "
            "those that dive export-vllm writes"
        )
    exact = _bytes(lora_a[:, width:])[: 4 * (rank + width + 1)].clone().view(torch.float32)
    bias, static, scale = exact.split([rank, width, 1])
    return LayerNumbers(lora_a[:, :width], lora_b, bias, static, scale.reshape(()))


def pack_card(card: dict[str, Any], rank: int) -> tuple[Tensor, Tensor]:
    """Returns the two tensors of a card, JSON values that describe an adapter."""
    data = zlib.compress(json.dumps(card, allow_nan=False).encode())
    data = len(data).to_bytes(4, "little") + data
    numbers = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return _as_numbers(numbers, rank), torch.zeros(1, rank)


def unpack_card(lora_a: Tensor) -> dict[str, Any]:
    """The reverse of `pack_card`.

    Raises:
        DiveError: the tensor holds no card.
    """
    data = _bytes(lora_a).numpy().tobytes()
    length = int.from_bytes(data[:4], "little")
    unzip = zlib.decompressobj()
    try:
        text = unzip.decompress(data[4 : 4 + length], _MOST_BYTES)
        card = json.loads(text)
    except (zlib.error, ValueError) as error:
        raise DiveError(f"the adapter's card is not readable ({error}); {EXPORT}") from error
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise DiveError(f"the adapter's card is not of format {CARD_FORMAT}; {EXPORT}")
    return card


CARD_FORMAT = 1
EXPORT = "want a folder written by dive export-vllm of this version"


def _as_numbers(data: Tensor, rank: int) -> Tensor:
    """Bytes as float32 numbers [rank, ceil(n / rank)], padded by zeros."""
    columns = -(-len(data) // rank)
    padded = torch.zeros(rank * columns)
    padded[: len(data)] = data.float()
    return padded.view(rank, columns)


def _bytes(numbers: Tensor) -> Tensor:
    """The reverse of `_as_numbers` without its padding's end, uint8 [n] on the CPU."""
    whole = numbers.detach().float().cpu().reshape(-1)
    if not bool(((whole >= 0) & (whole <= 255) & (whole == whole.round())).all()):
        raise DiveError(f"the adapter's exact part holds numbers that are no bytes; {EXPORT}")
    return whole.to(torch.uint8)
