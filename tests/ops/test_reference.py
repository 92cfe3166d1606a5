"""The oracle itself, against formulas written by hand, and its gradients against differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from dive.reference import decisive_cross_entropy, mixing_weights, steer

F64 = torch.float64


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh", "identity"])
def test_steer_is_the_formula(activation: str, norm_preserving: bool) -> None:
    h, down, bias, up, static, scale = draw(7), draw(3, 7), draw(3), draw(7, 3), draw(7), draw(())
    phi = {"silu": F.silu, "gelu": F.gelu, "tanh": torch.tanh, "identity": lambda x: x}[activation]
    u = h / torch.sqrt((h * h).sum() / 7 + 1e-6)
    want = h + scale * (up @ phi(down @ u + bias) + static)
    if norm_preserving:
        want = want * h.norm() / want.norm()
    got = steer(
        h, down, bias, up, static, scale, activation=activation, norm_preserving=norm_preserving
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh", "identity"])
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16], ids=str)
def test_mixing_weights_are_those_of_steer(activation: str, dtype: torch.dtype) -> None:
    """With unit vectors in up, they are the edit."""
    h, down, bias = draw(6, 4).to(dtype), draw(4, 4).float(), draw(4).float()
    if dtype == F64:
        down, bias = down.to(F64), bias.to(F64)
    found = mixing_weights(h, down, bias, activation=activation, eps=0.25)
    assert found.dtype == (F64 if dtype == F64 else torch.float32) and found.shape == (6, 4)
    unit, zero, one = torch.eye(4).to(bias), torch.zeros_like(bias), torch.ones(()).to(bias)
    got = steer(h, down, bias, unit, zero, one, activation=activation, eps=0.25)
    assert torch.equal((h.to(found.dtype) + found).to(dtype), got)
    assert torch.equal(found, found.to(dtype).to(found.dtype))  # rounded as the operands of steer


@pytest.mark.parametrize("norm_preserving", [False, True])
def test_steer_gradients(norm_preserving: bool) -> None:
    inputs = [draw(2, 3, 5), draw(2, 5), draw(2), draw(5, 2), draw(5), draw(())]
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert gradcheck(
        lambda *x: steer(*x, mask=mask, norm_preserving=norm_preserving),
        [x.requires_grad_() for x in inputs],
    )


def test_cross_entropy_is_the_formula() -> None:
    hidden, teacher, head, bias = draw(4, 3), draw(4, 3), draw(6, 3), draw(6)
    targets, weights = torch.tensor([5, 0, -100, 3]), torch.tensor([1.0, 4.0, 0.0, 2.0], dtype=F64)
    got = decisive_cross_entropy(
        hidden,
        head,
        targets,
        weights,
        bias=bias,
        softcap=2.0,
        teacher_hidden=teacher,
        ce_weight=0.5,
        kd_weight=2.0,
        temperature=3.0,
        token_class=torch.tensor([0, 1, 1, 0]),
    )
    ce = kl = torch.zeros((), dtype=F64)
    for t in (0, 1, 3):
        z = 2 * torch.tanh((head @ hidden[t] + bias) / 2)
        zt = 2 * torch.tanh((head @ teacher[t] + bias) / 2)
        p, q, qt = z.softmax(0), (z / 3).softmax(0), (zt / 3).softmax(0)
        torch.testing.assert_close(got.row_ce[t], -p[targets[t]].log())
        torch.testing.assert_close(got.lse[t], z.exp().sum().log())
        assert got.argmax[t] == p.argmax()
        torch.testing.assert_close(got.row_kl[t], 9 * (qt * (qt / q).log()).sum())
        ce = ce - weights[t] * p[targets[t]].log()
        kl = kl + 9 * (qt * (qt / q).log()).sum()
    torch.testing.assert_close(got.loss, 0.5 * ce / 7 + 2.0 * kl / 3)
    assert got.argmax[2] == -1 and got.row_ce[2] == 0 and got.row_kl[2] == 0
    assert got.class_count.tolist() == [2, 1, 0]
    torch.testing.assert_close(got.class_loss[0], (got.row_ce[0] + got.row_ce[3]) / 2)
    assert got.class_loss[2] == 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_gradients(reduction: str) -> None:
    head, targets, teacher = draw(11, 4), torch.randint(11, (5,)), draw(5, 4)
    inputs = [draw(5, 4).requires_grad_(), (torch.rand(5, dtype=F64) + 0.1).requires_grad_()]
    assert gradcheck(
        lambda h, w: (
            decisive_cross_entropy(
                h,
                head,
                targets,
                w,
                teacher_hidden=teacher,
                kd_weight=0.5,
                temperature=2.0,
                softcap=3.0,
                reduction=reduction,
            ).loss
        ),
        inputs,
    )
