"""`dive.ops.steer` against the reference, published formulas and torch's own checks."""

import time
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from dive import ops, reference
from dive.errors import DiveError
from dive.ops import steering_torch

F64 = torch.float64
NAMES = ("down", "down_bias", "up", "static", "scale")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def inputs(
    *lead: int, width: int = 24, rank: int = 3, dtype: torch.dtype = torch.float32, **kw: object
) -> list[Tensor]:
    """Returns h and the five parameters, all with gradients; float32 parameters by default."""
    params = kw.get("params", F64 if dtype == F64 else torch.float32)
    shapes = ((rank, width), (rank,), (width, rank), (width,), ())
    drawn = [torch.randn(*lead, width).to(dtype), *(torch.randn(s).to(params) for s in shapes)]
    return [x.requires_grad_() for x in drawn]


def gradients(function: object, args: list[Tensor], upstream: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(function(*args), args, upstream))


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh", "identity"])
def test_backward_is_the_derivative(activation: str, norm_preserving: bool, rank: int) -> None:
    args = inputs(4, width=5, rank=rank, dtype=F64)
    mask = torch.tensor([True, False, True, True])
    options = {"activation": activation, "norm_preserving": norm_preserving, "mask": mask}
    torch.testing.assert_close(ops.steer(*args, **options), reference.steer(*args, **options))
    assert gradcheck(lambda *x: ops.steer(*x, **options), args)


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_within_twice_that_of_plain_pytorch(
    dtype: torch.dtype, norm_preserving: bool
) -> None:
    args = inputs(3, 67, width=129, rank=5, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in args]
    upstream = torch.randn(3, 67, 129).to(dtype)
    run = {"norm_preserving": norm_preserving}
    truth = [
        reference.steer(*exact, **run),
        *gradients(lambda *x: reference.steer(*x, **run), exact, upstream.double()),
    ]

    def errors(function: object) -> list[float]:
        got = [
            function(*args, **run),
            *gradients(lambda *x: function(*x, **run), args, upstream),
        ]
        for x, g in zip(args, got[1:], strict=True):
            assert g.dtype == x.dtype
        return [
            ((g.double() - t).norm() / t.norm()).item() for g, t in zip(got, truth, strict=True)
        ]

    floor = torch.finfo(torch.float32).eps  # sums of the float32 parameters' gradients
    for mine, plain in zip(errors(ops.steer), errors(reference.steer), strict=True):
        assert mine <= 2 * plain + floor


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steer", [ops.steer, reference.steer])
def test_fresh_adapter_is_the_identity_bit_for_bit(
    steer: object, dtype: torch.dtype, norm_preserving: bool
) -> None:
    for shape in ((1, 1), (2, 5, 7), (129,)):
        wide = torch.randn(*shape[:-1], 2 * shape[-1]) * 300
        h = wide.to(dtype)[..., ::2]  # not contiguous
        down, bias, up, static, scale = inputs(1, width=shape[-1])[1:]
        with torch.no_grad():
            up.zero_(), static.zero_()
        out = steer(h, down, bias, up, static, scale, norm_preserving=norm_preserving)
        assert torch.equal(out, h) and out.data_ptr() != h.data_ptr()
        assert out.dtype == dtype and out.shape == h.shape


def test_fresh_norm_preserving_adapter_has_the_gradient_of_the_formula() -> None:
    args = inputs(3, width=6, dtype=F64)
    with torch.no_grad():
        args[3].zero_(), args[4].zero_()
    assert gradcheck(lambda *x: ops.steer(*x, norm_preserving=True), args)


def test_rows_of_zero_norm() -> None:
    h, *params = inputs(3, width=4, dtype=F64)
    with torch.no_grad():
        h[0] = 0  # |h| = 0: the edit is scaled away
        params[4].fill_(0.5)
    params[2].data.zero_()  # up, so that the edit is `static` alone
    params[3].data.copy_(-h.detach()[1] / params[4].item())  # row 1: h' is 0, ratio 1
    out = ops.steer(h, *params, norm_preserving=True)
    assert torch.equal(out[0], torch.zeros(4, dtype=F64))
    assert torch.equal(out[1], torch.zeros(4, dtype=F64))
    got = torch.autograd.grad(out.sum(), [h, *params])
    plain = reference.steer(h, *params, norm_preserving=True)
    want = torch.autograd.grad(plain.sum(), [h, *params])
    torch.testing.assert_close(got, want)


def test_masked_rows_pass_exactly_and_teach_nothing() -> None:
    args = inputs(2, 3, width=8)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    h = args[0].detach().clone()
    h[~mask] = float("nan")
    poisoned = [h.requires_grad_(), *args[1:]]
    for norm_preserving in (False, True):

        def run(*x: Tensor, keep: bool = norm_preserving) -> Tensor:
            return ops.steer(*x, mask=mask, norm_preserving=keep)

        out = run(*poisoned)
        assert out[~mask].isnan().all() and out[mask].isfinite().all()
        upstream = torch.randn(2, 3, 8)
        got, want = gradients(run, poisoned, upstream), gradients(run, args, upstream)
        for mine, clean in zip(got, want, strict=True):
            assert torch.equal(mine, clean)
        assert torch.equal(got[0][~mask], upstream[~mask])
        off = ops.steer(*args, mask=torch.zeros_like(mask), norm_preserving=norm_preserving)
        assert torch.equal(off, args[0])


def test_rank_0_norm_preserving_is_live() -> None:
    h, *params = inputs(5, width=6, rank=0, dtype=F64)
    shifted = h + params[4] * params[3]
    want = shifted / shifted.norm(dim=-1, keepdim=True) * h.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(ops.steer(h, *params, norm_preserving=True), want)


def test_identity_activation_is_a_linear_low_rank_edit() -> None:
    h, down, bias, up, static, scale = inputs(5, width=6, dtype=F64)
    u = F.rms_norm(h, (6,), eps=1e-6)
    want = h + scale * F.linear(F.linear(u, down, bias), up, static)
    got = ops.steer(h, down, bias, up, static, scale, activation="identity")
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (4,), (1, 1, 1, 4)])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    h, *params = inputs(*shape[:-1], width=4)
    out = ops.steer(h, *params)
    torch.testing.assert_close(out, reference.steer(h, *params))
    assert torch.autograd.grad(out.sum(), h)[0].shape == shape


def test_opcheck() -> None:
    for dtype, norm_preserving, masked in product(
        (torch.float32, torch.bfloat16), (False, True), (False, True)
    ):
        args = inputs(2, 3, width=8, dtype=dtype)
        mask = torch.rand(2, 3) > 0.5 if masked else None
        op = torch.ops.dive.steer.default
        torch.library.opcheck(op, (*args, mask, "silu", norm_preserving, 1e-6, True))
        plain = [x.detach() for x in args]
        torch.library.opcheck(op, (*plain, mask, "gelu", norm_preserving, 1e-6, False))
        out, pre, rstd = op(*plain, mask, "silu", norm_preserving, 1e-6, True)
        # all that is stored in addition to the inputs
        assert pre.shape == (6, 3) and rstd.shape == (6,)
        torch.library.opcheck(
            torch.ops.dive.steer_backward.default,
            (out, *plain, mask, pre, rstd, "silu", norm_preserving),
        )


def test_compiled_whole_and_checkpointed() -> None:
    args = inputs(2, 3, width=8)

    def layer(*x: Tensor) -> Tensor:
        return ops.steer(*x, norm_preserving=True).sin()

    upstream = torch.randn(2, 3, 8)
    want = gradients(layer, args, upstream)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    checkpointed = lambda *x: checkpoint(layer, *x, use_reentrant=False)  # noqa: E731
    for way in (compiled, checkpointed):
        for mine, eager in zip(gradients(way, args, upstream), want, strict=True):
            assert torch.equal(mine, eager)


def test_twice_is_refused_and_no_grad_stores_nothing() -> None:
    args = inputs(2, width=8)
    out = ops.steer(*args)
    (grad,) = torch.autograd.grad(out.sum(), args[0], create_graph=True)
    with pytest.raises(DiveError, match="differentiable once"):
        grad.sum().backward()
    with torch.no_grad():
        assert not ops.steer(*args).requires_grad
    out = torch.ops.dive.steer(*args, None, "silu", False, 1e-6, False)[0]
    with pytest.raises(DiveError, match="compute_grad=False"):
        out.sum().backward()


def test_autocast_has_no_effect() -> None:
    args = inputs(2, width=8)
    want = ops.steer(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.steer(*args), want)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(2, 8, dtype=torch.int64), r"steer: h is int64 \[2, 8\] on cpu, want a flo"),
        (1, torch.zeros(3, 7), r"steer: down is float32 \[3, 7\] .*, want float32 \[3, 8\]"),
        (1, torch.zeros(129, 8), r"down is .*R from 0 to 128"),
        (2, torch.zeros(4), r"steer: down_bias is float32 \[4\]"),
        (3, torch.zeros(8, 4), r"steer: up is float32 \[8, 4\] .*\[8, 3\] \(hidden size, rank\)"),
        (4, torch.zeros(8, dtype=torch.float16), r"steer: static is float16"),
        (4, torch.zeros(8, device="meta"), r"steer: static is .* on meta, want .* on cpu"),
        (5, torch.zeros(1), r"steer: scale is float32 \[1\]"),
        (5, 0.1, r"steer: scale is 0.1"),
    ],
)
def test_bad_tensors(position: int, value: object, message: str) -> None:
    args: list = inputs(2, width=8)
    args[position] = value
    with pytest.raises(DiveError, match=message):
        ops.steer(*args)


def test_bad_options() -> None:
    args = inputs(2, width=8)
    with pytest.raises(DiveError, match="activation is 'relu', want one of silu"):
        ops.steer(*args, activation="relu")
    with pytest.raises(DiveError, match=r"mask is float32 \[2\] .*, want bool \[2\]"):
        ops.steer(*args, mask=torch.ones(2))
    with pytest.raises(DiveError, match="eps is 0"):
        ops.steer(*args, eps=0.0)
    for eps in (1e308, 1e-300, 1e-39, float("nan"), "small"):
        with pytest.raises(DiveError, match="steer: eps is .*, want a number > 0"):
            ops.steer(*args, eps=eps)
    with pytest.raises(DiveError, match="operator is 'stear'"):
        ops.implementation("stear", "cpu")
    assert ops.implementation("steer", "cpu") == "pytorch"


class Bare(torch.autograd.Function):
    """The least cost of a custom gradient: no checks, no operator."""

    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> Tensor:
        out, pre, rstd = steering_torch.forward(*args, None, "silu", False, 1e-6, True)
        ctx.save_for_backward(*args, pre, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        saved = ctx.saved_tensors
        return steering_torch.backward(grad, *saved[:6], None, *saved[6:], "silu", False)


def test_a_call_costs_little_more_than_its_arithmetic() -> None:
    """By the least time of each: a busy or slow machine only needs more rounds to show it.
    benchmarks/bench_steer.py has the figures."""
    args = inputs(1, width=8)
    plain = [x.detach() for x in args]
    upstream = torch.ones(1, 8)
    ways = {
        "called": lambda: ops.steer(*args),
        "bare": lambda: Bare.apply(*args),
        "arithmetic": lambda: steering_torch.forward(*plain, None, "silu", False, 1e-6, True),
        "called both ways": lambda: gradients(ops.steer, args, upstream),
        "bare both ways": lambda: gradients(Bare.apply, args, upstream),
    }
    most = {("called", "arithmetic"): 3, ("called", "bare"): 2}
    most["called both ways", "bare both ways"] = 2
    best = dict.fromkeys(ways, float("inf"))
    ratios: dict[tuple[str, str], float] = {}
    for _ in range(300):
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(20):
                way()
            best[name] = min(best[name], (time.perf_counter() - start) / 20)
        ratios = {pair: best[pair[0]] / best[pair[1]] for pair in most}
        if all(ratios[pair] < most[pair] for pair in most):
            break
    assert all(ratios[pair] < most[pair] for pair in most), ratios


def test_checkpointing_a_layer_together_with_its_steering() -> None:
    """The layer is recomputed when steer's backward unpacks its saved tensors: with autograd on."""
    torch.manual_seed(0)
    shapes = ((5, 8), (3, 8), (3,), (8, 3), (8,), ())
    h, *parameters = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes]
    layer = torch.nn.Linear(8, 8, dtype=torch.float64)

    def block(x: torch.Tensor) -> torch.Tensor:
        return ops.steer(torch.tanh(layer(x)), *parameters)

    given = [h, *parameters, *layer.parameters()]
    want = torch.autograd.grad(block(h).square().sum(), given)
    kept = torch.utils.checkpoint.checkpoint(block, h, use_reentrant=False)
    got = torch.autograd.grad(kept.square().sum(), given)
    for mine, other in zip(got, want, strict=True):
        assert torch.equal(mine, other)
