"""Weights and normalizers of the loss that are no use in float32, and ones that just are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dive import ops, reference
from dive.errors import DiveError

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "overflow": ({"weights": [3e38, 3e38]}, r"the sum of weights is inf"),
    "denormal": ({"weights": [1e-45, 0]}, r"the sum of weights is 1.4\d*e-45"),
    "denormal sum": ({"weights": [1e-39, 2e-39]}, r"the sum of weights is 3e-39"),
    "float64 weights": ({"weights": [1e39, 1.0], "wide": True}, r"weights\[0\] is 1e\+39"),
    "normalizer": ({"normalizer": 1e-45}, r"normalizer is 1.4\d*e-45"),
    "float64 normalizer": ({"normalizer": 1e300, "wide": True}, r"normalizer is 1e\+300"),
    "infinite normalizer": ({"normalizer": float("inf")}, r"normalizer is inf"),
    "float64 weights of 0": ({"weights": [1.0, 1e-50], "wide": True}, r"weights\[1\] is 1e-50"),
    "float64 kd weights of 0": (
        {"kd_weights": [1e-50, 1.0], "wide": True},
        r"kd_weights\[0\] is 1e-50",
    ),
    "float64 normalizer of 0": ({"normalizer": 1e-50, "wide": True}, r"normalizer is 1e-50"),
    "float64 kd normalizer of 0": (
        {"kd_normalizer": 1e-50, "wide": True},
        r"kd_normalizer is 1e-50",
    ),
    "infinite loss": (
        {"weights": [3e38, 3e38], "reduction": "sum"},
        r"the loss is inf, want a finite number",
    ),
    "infinite loss of a row": ({"weights": [1.0, 3e38], "reduction": "none"}, r"the loss is inf"),
    "infinite loss by its factors": (
        {"kd_weights": [1.0, 1.0], "kd_weight": 3e38, "ce_weight": 3e38},
        r"the loss is inf",
    ),
    "kd overflow": ({"kd_weights": [3e38, 2e38]}, r"the sum of kd_weights is inf"),
    "kd denormal": ({"kd_weights": [1e-45, 1e-45]}, r"the sum of kd_weights is 2.8\d*e-45"),
    "kd normalizer": ({"kd_normalizer": 1e-40}, r"kd_normalizer is (1e-40|9.99\d*e-41)"),
}
# where the reference gives what float32 has of it: an infinity, or 0
ONLY_TOLD = {name for name in WRONG if name.startswith("infinite loss") or name.endswith("of 0")}
ONLY_TOLD.add("float64 weights")
# and what is still a number
RIGHT: dict[str, dict[str, Any]] = {
    "large": {"weights": [1.5e38, 1.5e38]},
    "small": {"weights": [2e-38, 2e-38]},
    "one denormal": {"weights": [1e-45, 1.0]},
    "nothing": {"weights": [0.0, 0.0]},
    "not used": {"weights": [1.0, 1.0], "normalizer": 0.0},
    "sum of denormals": {"weights": [1e-45, 1e-45], "reduction": "sum"},
}


def given(
    weights: Any = (1.0, 2.0),
    kd_weights: Any = None,
    normalizer: Any = None,
    kd_normalizer: Any = None,
    wide: bool = False,
    **more: Any,
) -> dict[str, Any]:
    dtype = torch.float64 if wide else torch.float32
    g = torch.Generator().manual_seed(1)

    def scalar(value: Any) -> Tensor | None:
        return None if value is None else torch.tensor(value, dtype=dtype)

    distils = kd_weights is not None or kd_normalizer is not None
    return {
        "hidden": torch.randn(2, 8, generator=g),
        "lm_head": torch.randn(12, 8, generator=g),
        "targets": torch.tensor([3, 5]),
        "weights": torch.tensor(weights, dtype=dtype),
        "kd_weights": None if kd_weights is None else torch.tensor(kd_weights, dtype=dtype),
        "teacher_hidden": torch.randn(2, 8, generator=g) if distils else None,
        "kd_weight": 0.5 if distils else 0.0,
        "normalizer": scalar(normalizer),
        "kd_normalizer": scalar(kd_normalizer),
        **more,
    }


def check_wrong(name: str, loss: Callable[..., Any], told: bool = True) -> None:
    more, message = WRONG[name]
    if not told:
        assert loss(**given(**more)).loss.isnan()
        return
    with pytest.raises(DiveError, match=message):
        loss(**given(**more), validate=True)
    result = loss(**given(**more), validate=False)
    assert result.loss.isnan().all()
    with pytest.raises(DiveError, match=message):
        ops.check(result)


def check_right(name: str, loss: Callable[..., Any]) -> None:
    """Against float64, which holds all of it; the gradient of weights too, where float32 has it."""
    case = given(**RIGHT[name])
    case["hidden"].requires_grad_()
    case["weights"].requires_grad_()
    exact = {
        key: value.detach().double() if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for key, value in case.items()
    }  # fmt: skip
    exact["hidden"].requires_grad_()
    exact["weights"].requires_grad_()
    want = reference.decisive_cross_entropy(**exact).loss
    got = loss(**case).loss
    want.backward()
    got.backward()
    assert got.item() == pytest.approx(want.item(), rel=1e-5, abs=1e-44)
    for key in ("hidden", "weights"):
        slope = exact[key].grad
        if slope.abs().max() < 1e37:
            assert torch.allclose(case[key].grad.double(), slope, rtol=1e-4, atol=1e-6), key
