"""Arguments with strides, under Triton's interpreter: every other element of a tensor, a column of
one, or one number expanded. A kernel that takes a pointer must not be passed these as they are.

test_kernels_interpreted.py runs this file in its own process.
"""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by test_kernels_interpreted.py", allow_module_level=True)

from typing import Any

import torch
from torch import Tensor

from dive import ops
from dive.ops import triton_path

triton_path.install("CPU")
N, V, D, R = 6, 37, 24, 3


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def spaced(x: Tensor) -> Tensor:
    """Returns the same values with others between them."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 99).to(x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def transposed(x: Tensor) -> Tensor:
    """Returns the same values with the first dimension innermost; a vector as a column."""
    if x.dim() > 1:
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    return torch.stack([x, torch.full_like(x, 1)], 1)[:, 0]


def expanded(x: Tensor) -> Tensor:
    """Returns the first element of the last dimension, expanded to its size."""
    return x[..., :1].expand(x.shape)


LAYOUTS = {"spaced": spaced, "transposed": transposed, "expanded": expanded}
CONSTANT = ("lm_head", "bias", "teacher_hidden", "kd_weights")


def assert_the_same(operator: Any, given: dict[str, Any], name: str, layout: str) -> None:
    """The results equal those of a contiguous copy of the argument, gradients included."""
    change, found = LAYOUTS[layout], []
    for place in (change, lambda x: change(x).contiguous()):
        values = {**given, name: place(given[name])}
        learnt = [k for k, v in values.items() if v.is_floating_point() and k not in CONSTANT]
        values |= {k: values[k].detach().requires_grad_() for k in learnt}
        outputs = operator(values)
        grads = torch.autograd.grad(outputs[0].sum(), [values[k] for k in learnt])
        found.append([*outputs, *grads])
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["h", "down", "down_bias", "up", "static", "mask"])
def test_steer(name: str, layout: str) -> None:
    given = {
        "h": torch.randn(N, D),
        "down": torch.randn(R, D),
        "down_bias": torch.randn(R),
        "up": torch.randn(D, R),
        "static": torch.randn(D),
        "scale": torch.randn(R)[1],
        "mask": torch.tensor([True, False, True, True, False, True]),
    }
    for norm_preserving in (False, True):
        assert_the_same(
            lambda values: (ops.steer(**values, norm_preserving=norm_preserving),),  # noqa: B023
            given, name, layout,
        )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "name",
    ["hidden", "lm_head", "targets", "weights", "bias", "teacher_hidden", "kd_weights",
     "token_class", "rows"],
)  # fmt: skip
def test_decisive_cross_entropy(name: str, reduction: str, layout: str) -> None:
    given = {
        "hidden": torch.randn(N, D),
        "lm_head": torch.randn(V, D),
        "targets": torch.randint(0, V, (N,)),
        "weights": torch.rand(N) + 0.1,
        "bias": torch.randn(V),
        "teacher_hidden": torch.randn(N, D),
        "kd_weights": torch.rand(N) + 0.1,
        "token_class": torch.tensor([0, 1, 2, 0, 1, 7]),
        "rows": torch.tensor([4, 1, 0, 2, 5, 3]),
    }
    if name == "rows" and layout == "expanded":  # a row is listed once: only padding is left
        given["rows"] = torch.full((N,), -1)

    def operator(values: dict[str, Any]) -> list[Tensor]:
        result = ops.decisive_cross_entropy(
            **values, kd_weight=0.5, reduction=reduction, validate=False
        )
        return [x for x in result if x is not None]

    assert_the_same(operator, given, name, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_upstream_gradient(layout: str) -> None:
    h, upstream = torch.randn(N, D, requires_grad=True), torch.randn(N, D)
    out = ops.steer(h, torch.randn(R, D), torch.randn(R), torch.randn(D, R), torch.randn(D),
                    torch.tensor(0.3))  # fmt: skip
    hidden, weights = torch.randn(N, D, requires_grad=True), torch.rand(N) + 0.1
    loss = ops.decisive_cross_entropy(
        hidden, torch.randn(V, D), torch.randint(0, V, (N,)), weights, reduction="none"
    ).loss
    change = LAYOUTS[layout]
    for result, leaf, given in ((out, h, upstream), (loss, hidden, upstream[:, 0])):
        got, want = (
            torch.autograd.grad(result, leaf, x, retain_graph=True)[0]
            for x in (change(given), change(given).contiguous())
        )
        assert torch.equal(got, want)
