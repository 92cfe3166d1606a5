"""The arguments of `dive::decisive_cross_entropy`: one list for all its paths."""

from typing import NamedTuple, get_type_hints

import torch
from torch import Tensor


class LossArguments(NamedTuple):
    """The arguments in the operator's order; `dive.ops.decisive_cross_entropy` explains them."""

    hidden: Tensor
    lm_head: Tensor
    targets: Tensor
    weights: Tensor
    rows: Tensor
    bias: Tensor | None
    teacher_hidden: Tensor | None  # None: nothing is distilled
    kd_weights: Tensor | None
    normalizer: Tensor | None
    kd_normalizer: Tensor | None
    token_class: Tensor | None
    softcap: float | None
    ce_weight: float
    kd_weight: float
    temperature: float
    reduction: str
    chunk_bytes: int
    validate: bool
    compute_grad: bool


_SCHEMA = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    float: "float",
    float | None: "float?",
    str: "str",
    int: "SymInt",
    bool: "bool",
}


def schema() -> str:
    """Returns the arguments as a declaration for torch.library."""
    hints = get_type_hints(LossArguments)
    return ", ".join(f"{_SCHEMA[kind]} {name}" for name, kind in hints.items())


def wide_of(hidden: Tensor) -> torch.dtype:
    """Returns the dtype of the sums."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
