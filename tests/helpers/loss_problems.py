"""Random input of `decisive_cross_entropy`, and values that it refuses on every path."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dive import ops
from dive.errors import DiveError

F64 = torch.float64
N, V, D = 9, 37, 6


def problem(
    n: int = N, v: int = V, d: int = D, dtype: torch.dtype = F64, peak: float = 1.0
) -> dict[str, Tensor]:
    head = torch.randn(v, d)
    targets = torch.randint(v, (n,))
    hidden = torch.randn(n, d)
    half = n // 2  # near-certain rows where peak is high
    hidden[:half] = peak * head[targets[:half]]
    return {
        "hidden": hidden.to(dtype).requires_grad_(),
        "lm_head": head.to(dtype),
        "targets": targets,
        "weights": (torch.rand(n) + 0.1).to(F64 if dtype == F64 else torch.float32),
    }


def teacher_of(p: dict[str, Tensor]) -> Tensor:
    return torch.randn(p["hidden"].shape).to(p["hidden"].dtype)


def change(name: str, row: int, value: float) -> Callable[[dict[str, Any]], None]:
    def apply(p: dict[str, Any]) -> None:
        p[name][row] = value

    return apply


BAD_VALUES = [
    (change("targets", 3, V), rf"targets\[3\] is {V}, want an index into the {V} rows of lm_head"),
    (change("targets", 0, -100), r"targets\[0\] is -100, want an index"),
    (change("weights", 8, -0.5), r"weights\[8\] is -0.5, want a finite number >= 0"),
    (change("weights", 1, float("nan")), r"weights\[1\] is nan"),
    (change("weights", 1, float("inf")), r"weights\[1\] is inf"),
    (lambda p: p.update(rows=torch.tensor([0, 9])), r"rows\[1\] is 9, want -1 or the index of one"),
    (lambda p: p.update(normalizer=torch.tensor(-1.0)), r": normalizer is -1, want a finite"),
    (lambda p: p.update(kd_normalizer=torch.tensor(torch.nan)), r": kd_normalizer is nan"),
    (lambda p: p.update(kd_weights=-torch.ones(N)), r"kd_weights\[0\] is -1"),
]


def check_bad_value(spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    p: dict[str, Any] = problem(dtype=torch.float32)
    p |= {"teacher_hidden": teacher_of(p), "kd_weight": 1.0}
    ops.check(ops.decisive_cross_entropy(**p, validate=False))
    spoil(p)
    with pytest.raises(DiveError, match=message):
        ops.decisive_cross_entropy(**p)
    late = ops.decisive_cross_entropy(**p, validate=False)
    assert late.loss.isnan()
    with pytest.raises(DiveError, match=message.replace(f"the {V} rows", "the rows")):
        ops.check(late)
