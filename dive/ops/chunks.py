"""The number of rows of logits computed at a time, in PyTorch and by the kernels."""

import math
from dataclasses import dataclass

import torch

MIB = 2**20
_TILE_BYTES = {"cpu": MIB // 2, "other": 64 * MIB}


@dataclass
class ChunkLayout:
    """The rows of a chunk and of a tile, and the buffers that they need."""

    chunk_rows: int
    tile_rows: int
    scratch: int  # tiles in the dtype of summation, in addition to the chunk's buffers


def default_chunk_bytes(device: torch.device, distils: bool) -> int:
    """Returns the default size of all vocabulary-wide buffers together, in bytes."""
    if device.type == "cpu":
        return 32 * MIB
    return (512 if distils else 256) * MIB


def chunk_layout(
    live: int,
    vocab: int,
    dtype: torch.dtype,
    device: torch.device,
    chunk_bytes: int,
    distils: bool,
    softcap: bool,
    tempered: bool,
    in_place: bool = False,
) -> ChunkLayout:
    """Returns chunks of nearly equal size whose buffers and scratch tiles fit in `chunk_bytes`.

    A chunk has at least 32 rows (256 off the CPU) where that many are live, even if they do not
    fit.
    tempered: the temperature is not 1. in_place: one kernel works on whole rows in place, and no
    tile is needed.
    """
    cpu = device.type == "cpu"
    wide_bytes = 8 if dtype == torch.float64 else 4
    narrow = dtype not in (torch.float32, torch.float64)
    tile_rows = max(1, _TILE_BYTES["cpu" if cpu else "other"] // (wide_bytes * max(vocab, 1)))
    # student and teacher where their buffers are narrow; difference, slope of the cap, and a copy
    # at the temperature
    scratch = narrow * (1 + distils) + distils + softcap + (distils and tempered)
    scratch = 0 if in_place else scratch
    budget = chunk_bytes - scratch * tile_rows * vocab * wide_bytes
    rows = max(budget // max(vocab * dtype.itemsize * (1 + distils), 1), 32 if cpu else 256)
    if not cpu:
        rows = rows // 128 * 128
    count = max(1, math.ceil(live / rows))
    chunk_rows = math.ceil(live / count)
    if not cpu and count > 1:
        chunk_rows = min(rows, math.ceil(chunk_rows / 128) * 128)
    return ChunkLayout(chunk_rows, min(tile_rows, max(chunk_rows, 1)), scratch)


def gradient_scale(dtype: torch.dtype, vocab: int) -> float:
    """Returns the factor by which gradients of logits are stored.

    float16 has too little range for probabilities of a large vocabulary; with this factor they are
    representable, and so is the entry of the target.
    """
    return 2.0 ** round(math.log2(max(vocab, 2)) / 2) if dtype == torch.float16 else 1.0
