"""Prompts as tensors: which have one entry per token, batches, and positions of answers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dive.errors import DiveError


def sequence_names(batch: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that have one entry per token: [1, T] or [1, T, ...]."""
    shape = batch["input_ids"].shape
    return [
        name
        for name, value in batch.items()
        if value.shape[:2] == shape and not name.startswith(("pixel", "image"))
    ]


def collate(batch: Sequence[dict[str, Tensor]], pad_token_id: int, side: str) -> dict[str, Tensor]:
    """One batch of prompts: sequence tensors padded at `side`, images one after the other.

    Left for generating, right for training. Padding has attention_mask 0. Image tensors whose
    further dimensions differ (tiles per image) are padded with zeros there, as processors do.
    """
    if side not in ("left", "right"):
        raise DiveError(f"side is {side!r}, want 'left' or 'right'")
    longest = max(one["input_ids"].shape[1] for one in batch)
    names = list(dict.fromkeys(name for one in batch for name in one))
    sequences = {name for one in batch for name in sequence_names(one)}
    joined: dict[str, Tensor] = {}
    for name in names:
        values = [one[name] for one in batch if name in one]
        if name not in sequences:
            joined[name] = torch.cat(_same_size(values))
            continue
        if len(values) < len(batch):
            raise DiveError(f"some prompts of the batch have {name!r} and some have not")
        fill = pad_token_id if name == "input_ids" else 0
        padded = []
        for value in values:
            short = longest - value.shape[1]
            pad = value.new_full((1, short, *value.shape[2:]), fill)
            padded.append(torch.cat([pad, value] if side == "left" else [value, pad], dim=1))
        joined[name] = torch.cat(_same_size(padded))
    return joined


def response_positions(
    prompt_lengths: Sequence[int],
    response_lengths: Sequence[int],
    total_length: int,
    side: str = "right",
) -> Tensor:
    """Positions [B, T], bool, whose hidden states predict the answer's tokens.

    The last prompt position is one of them, the position of the end token itself is not. Row b has
    `response_lengths[b]` of them, in the order of the answer; `side` is where the batch is padded.
    """
    positions = torch.zeros(len(prompt_lengths), total_length, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompt_lengths, response_lengths, strict=True)):
        pad = total_length - prompt - response if side == "left" else 0
        positions[row, pad + prompt - 1 : pad + prompt + response - 1] = True
    return positions


def response_targets(input_ids: Tensor, positions: Tensor) -> Tensor:
    """The tokens that `positions` predict, flat: one per true entry, row by row."""
    return input_ids.roll(-1, dims=1)[positions.to(input_ids.device)]


def _same_size(values: list[Tensor]) -> list[Tensor]:
    """Pad the end of every dimension after the first that differs with zeros."""
    sizes = [max(extent) for extent in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        room = value.new_zeros(value.shape[0], *sizes)
        room[tuple(slice(0, extent) for extent in value.shape)] = value
        padded.append(room if list(value.shape[1:]) != sizes else value)
    return padded
