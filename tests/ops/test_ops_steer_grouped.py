"""`dive.ops.steer_grouped_` against `dive.ops.steer` token by token, and the plain reference."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from dive import ops, reference
from dive.errors import DiveError
from dive.errors.checks import ACTIVATIONS

F64 = torch.float64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def inputs(
    adapters: list[int],
    width: int = 24,
    rank: int = 5,
    dtype: torch.dtype = torch.float32,
    count: int = 3,
    beside: bool = True,
    narrow: bool = False,
) -> list[Any]:
    """Returns the arguments, for as many tokens as adapters; narrow: down and up in dtype."""
    tokens, wide = len(adapters), F64 if dtype == F64 else torch.float32
    hidden, residual = (torch.randn(tokens, width).to(dtype) for _ in range(2))
    shapes = ((count, rank, width), (count, rank), (count, width, rank), (count, width), (count,))
    down, bias, up, static, scale = (torch.randn(s).to(wide) for s in shapes)
    if narrow:
        down, up = down.to(dtype), up.to(dtype)
    own = torch.tensor(adapters, dtype=torch.int64)
    return [hidden, residual if beside else None, own, down, bias, up, static, scale]


def exactly(args: list[Any]) -> list[Any]:
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]


def changed(function: Any, args: list[Any], **options: Any) -> Tensor:
    """Returns hidden after a call; what the call got is as it was."""
    given = [None if x is None else x.clone() for x in args]
    assert function(*given, **options) is None
    for before, after in zip(args[1:], given[1:], strict=True):
        assert before is after is None or torch.equal(before, after)
    return given[0]


def by_steer(args: list[Any], **options: Any) -> Tensor:
    """Returns hidden + (steer(h) - h) where there is an adapter, by `ops.steer` and each token."""
    hidden, residual, adapters, *parameters = args
    out = hidden.clone()
    for t, which in enumerate(adapters[: hidden.shape[0]].tolist()):
        if 0 <= which < parameters[0].shape[0]:
            h = hidden[t] if residual is None else hidden[t] + residual[t]
            out[t] += ops.steer(h, *(x[which] for x in parameters), **options) - h
    return out


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_token_is_what_steer_makes_of_it(
    activation: str, norm_preserving: bool, beside: bool
) -> None:
    args = inputs([0, 2, -1, 1, 0, 2, 2], dtype=F64, beside=beside)
    options = {"activation": activation, "norm_preserving": norm_preserving, "eps": 1e-3}
    want = by_steer(args, **options)
    torch.testing.assert_close(changed(ops.steer_grouped_, args, **options), want)
    torch.testing.assert_close(changed(reference.steer_grouped_, args, **options), want)


# scattered, together, one adapter only, one token
ORDERS = ([0, 2, -1, 1, 0, 2, 2] * 9, [1] * 30 + [-1] * 3 + [0] * 30, [2] * 63, [1])


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_within_twice_that_of_plain_pytorch(
    dtype: torch.dtype, norm_preserving: bool, narrow: bool
) -> None:
    for adapters, beside in product(ORDERS, (False, True)):
        args = inputs(adapters, width=129, dtype=dtype, beside=beside, narrow=narrow)
        options = {"norm_preserving": norm_preserving}
        truth = by_steer(exactly(args), **options)
        mine, plain = (
            ((changed(f, args, **options).double() - truth).norm() / truth.norm()).item()
            for f in (ops.steer_grouped_, reference.steer_grouped_)
        )
        assert mine <= 2 * plain + torch.finfo(torch.float32).eps
        assert plain <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, F64])
def test_one_adapter_and_no_residual_is_steer_bit_for_bit(
    dtype: torch.dtype, norm_preserving: bool
) -> None:
    args = inputs([1] * 6, dtype=dtype, beside=False)
    options = {"norm_preserving": norm_preserving}
    want = ops.steer(args[0], *(x[1] for x in args[3:]), **options)
    assert torch.equal(changed(ops.steer_grouped_, args, **options), want)


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_state_is_summed_in_float32(dtype: torch.dtype, norm_preserving: bool) -> None:
    """A small hidden beside a large residual: their sum in a narrow dtype would lose the first."""
    args = inputs([0, 1] * 20, width=64, dtype=dtype)
    args[0] *= 2.0**-9
    args[1] *= 8
    options = {"norm_preserving": norm_preserving}
    exact = exactly(args)
    truth, plain = by_steer(exact, **options), changed(reference.steer_grouped_, args, **options)
    mine = changed(ops.steer_grouped_, args, **options)
    lost = (plain.double() - truth).norm()
    assert (mine.double() - truth).norm() <= 2 * lost + torch.finfo(torch.float32).eps
    assert lost <= 4 * torch.finfo(dtype).eps * truth.norm()


def test_a_residual_may_be_wider_than_hidden() -> None:
    args = inputs([0, 1, -1, 2], dtype=torch.bfloat16)
    wide = [args[0], args[1].float(), *args[2:]]
    assert torch.equal(changed(ops.steer_grouped_, wide), changed(ops.steer_grouped_, args))


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, F64])
def test_tokens_without_an_adapter_keep_every_bit(
    dtype: torch.dtype, beside: bool, norm_preserving: bool
) -> None:
    """Whatever they hold; L and more is none, and so is what stands in stale rows of padding."""
    adapters = [0, -1, 3, 2, -(2**40), 2**62, 1]
    none = torch.tensor([not 0 <= a < 3 for a in adapters])
    args = inputs(adapters, dtype=dtype, beside=beside)
    clean = changed(ops.steer_grouped_, args, norm_preserving=norm_preserving)
    assert torch.equal(clean[none], args[0][none])
    args[0][none] = torch.tensor([float("nan"), float("inf"), -0.0, 1.0])[:, None].to(dtype)
    got = changed(ops.steer_grouped_, args, norm_preserving=norm_preserving)
    assert torch.equal(got[~none], clean[~none]) and not torch.equal(clean, args[0])
    kept, before = got[none], args[0][none]
    assert torch.equal(kept.view(torch.uint8), before.view(torch.uint8))
    for everywhere in (-1, 3):
        args[2] = torch.full((7,), everywhere)
        got = changed(ops.steer_grouped_, args, norm_preserving=norm_preserving)
        assert torch.equal(got.view(torch.uint8), args[0].view(torch.uint8))


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fresh_adapters_are_the_identity_bit_for_bit(
    dtype: torch.dtype, norm_preserving: bool
) -> None:
    args = inputs([0, 1, 2, 0], dtype=dtype)
    args[0] *= 300
    args[5].zero_(), args[6].zero_()
    got = changed(ops.steer_grouped_, args, norm_preserving=norm_preserving)
    assert torch.equal(got, args[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_adapters_of_lower_ranks_padded_with_zeros(activation: str) -> None:
    args = inputs([0, 1, 2, 0, 1, 2], rank=7, dtype=F64)
    options = {"activation": activation}
    hidden, residual, adapters, down, bias, up, static, scale = args
    want = hidden.clone()
    for which, rank in enumerate((0, 3, 7)):
        down[which, rank:], bias[which, rank:], up[which, :, rank:] = 0, 0, 0
        own = (adapters == which).nonzero()[:, 0]
        h = hidden[own] + residual[own]
        lower = down[which, :rank], bias[which, :rank], up[which, :, :rank]
        want[own] += ops.steer(h, *lower, static[which], scale[which], **options) - h
    torch.testing.assert_close(changed(ops.steer_grouped_, args, **options), want)


@pytest.mark.parametrize("norm_preserving", [False, True])
def test_rank_0_is_the_static_vector(norm_preserving: bool) -> None:
    args = inputs([0, -1, 1], rank=0, dtype=F64)
    options = {"norm_preserving": norm_preserving}
    torch.testing.assert_close(
        changed(ops.steer_grouped_, args, **options), by_steer(args, **options)
    )


def test_states_of_zero_norm() -> None:
    args = inputs([0, 1, 2], dtype=F64)
    args[1][0] = -args[0][0]  # the state is 0: the edit is scaled away
    args[5].zero_()
    args[6][1] = -(args[0] + args[1])[1] / args[7][1]  # the state becomes 0
    got = changed(ops.steer_grouped_, args, norm_preserving=True)
    assert torch.equal(got[0], args[0][0]) and got.isfinite().all()
    torch.testing.assert_close(got[1], -args[1][1])


def test_entries_past_the_tokens_are_not_read() -> None:
    args = inputs([0, 2, 1, 1])
    want = changed(ops.steer_grouped_, args)
    longer = [*args[:2], torch.cat([args[2], torch.tensor([7, 0, -9])]), *args[3:]]
    assert torch.equal(changed(ops.steer_grouped_, longer), want)


def test_no_tokens_and_no_width() -> None:
    for tokens, width in ((0, 24), (3, 0)):
        args = inputs([0] * tokens, width=width)
        assert changed(ops.steer_grouped_, args).shape == (tokens, width)


def test_views_of_buffers() -> None:
    args = inputs([0, 2, -1, 1, 0])
    want = changed(ops.steer_grouped_, args)
    wider = torch.full((7, 40), 9.0)
    wider[1:6, 3:27] = args[0]
    packed_down, packed_up = torch.zeros(3, 6, 25), torch.zeros(3, 24, 6)
    packed_down[:, 1:, :24], packed_down[:, 1:, 24], packed_up[:, :, 1:] = args[3], args[4], args[5]
    beside = args[1].t().contiguous().t()
    parts = (packed_down[:, 1:, :24], packed_down[:, 1:, 24], packed_up[:, :, 1:])
    hidden = wider[1:6, 3:27]
    ops.steer_grouped_(hidden, beside, args[2], *parts, *args[6:])
    torch.testing.assert_close(hidden, want)
    wider[1:6, 3:27] = 9.0
    assert (wider == 9).all()  # around it nothing was written
    columns = args[0].t().contiguous().t()
    ops.steer_grouped_(columns, *args[1:])
    torch.testing.assert_close(columns, want)


def test_opcheck() -> None:
    for dtype, norm_preserving, beside in product(
        (torch.float32, torch.bfloat16), (False, True), (False, True)
    ):
        args = inputs([0, 2, -1, 1], dtype=dtype, beside=beside)
        op = torch.ops.dive.steer_grouped_.default
        torch.library.opcheck(op, (*args, "silu", norm_preserving, 1e-6))


@pytest.mark.parametrize("norm_preserving", [False, True])
def test_compiled_whole(norm_preserving: bool) -> None:
    def layer(hidden: Tensor, *others: Any) -> Tensor:
        hidden = hidden * 2
        ops.steer_grouped_(hidden, *others, norm_preserving=norm_preserving)
        return hidden.sin()

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    adapters = torch.tensor([0, 2, -1, 1, 0, 0, 1, 1, 2, 2, 0, -1])
    for tokens in (10, 11, 12):  # of a buffer that is longer than the tokens
        args = inputs([0] * tokens)
        args[2] = adapters
        with torch.no_grad():
            assert torch.equal(compiled(*args), layer(*args))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compiled_with_a_number_of_tokens_that_nothing_is_known_of() -> None:
    args = inputs([0, 2, -1, 1, 0])
    want = args[0].clone()
    ops.steer_grouped_(want, *args[1:])
    torch._dynamo.reset()
    for given in args[:2]:
        torch._dynamo.decorators.mark_unbacked(given, 0)
    torch.compile(ops.steer_grouped_, fullgraph=True, backend="aot_eager")(*args)
    assert torch.equal(args[0], want)


def test_gradients_are_refused_where_there_would_be_some() -> None:
    args = inputs([0, 1])
    for position, name in ((0, "hidden"), (1, "residual"), (3, "down"), (7, "scale")):
        given = list(args)
        given[position] = args[position].clone().requires_grad_()
        for call in (
            ops.steer_grouped_,
            lambda *x: torch.ops.dive.steer_grouped_(*x, "silu", False, 1e-6),
        ):
            with pytest.raises(DiveError, match=f"steer_grouped_: {name} requires a gradient"):
                call(*given)
        before = args[0].clone()
        with torch.no_grad():
            ops.steer_grouped_(*given)
        assert not torch.equal(given[0], before)


def test_autograd_sees_the_change() -> None:
    args = inputs([0, 1])
    leaf = args[0].clone().requires_grad_()
    saved = args[1].clone()
    product = leaf * saved
    ops.steer_grouped_(saved, None, *args[2:])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.inference_mode():
        inside = inputs([0, 1])
        ops.steer_grouped_(*inside)


def test_autocast_has_no_effect() -> None:
    args = inputs([0, 1, -1])
    want = changed(ops.steer_grouped_, args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(changed(ops.steer_grouped_, args), want)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(2, 1, 24), r"hidden is float32 \[2, 1, 24\] on cpu, want a floating-point"),
        (0, torch.zeros(2, 24, dtype=torch.int8), r"hidden is int8 \[2, 24\]"),
        (1, torch.zeros(1, 24), r"residual is float32 \[1, 24\] .*, want as hidden: float32 \[2"),
        (1, torch.zeros(2, 23), r"residual is float32 \[2, 23\]"),
        (1, torch.zeros(2, 24).half(), r"residual is float16 \[2, 24\]"),
        (2, torch.zeros(2, dtype=torch.int32), r"adapters is int32 \[2\] .*, want int64 \[T or mo"),
        (2, torch.zeros(1, dtype=torch.int64), r"adapters is int64 \[1\] .*, want int64 \[2 or mo"),
        (2, [0, 1], r"adapters is \[0, 1\], want int64"),
        (3, torch.zeros(0, 5, 24), r"down is float32 \[0, 5, 24\] .* with L from 1"),
        (3, torch.zeros(3, 129, 24), r"down is float32 \[3, 129, 24\] .* with R from 0 to 128"),
        (3, torch.zeros(3, 5, 23), r"down is float32 \[3, 5, 23\] .*, want float32 \[3, 5, 24\]"),
        (4, torch.zeros(3, 4), r"down_bias is float32 \[3, 4\] .*\[3, 5\] \(adapters, rank\)"),
        (5, torch.zeros(3, 5, 24), r"up is float32 \[3, 5, 24\] .*, want float32 \[3, 24, 5\]"),
        (6, torch.zeros(24), r"static is float32 \[24\]"),
        (7, torch.zeros(3, device="meta"), r"scale is .* on meta, want .* on cpu"),
        (7, 0.5, r"scale is 0.5"),
    ],
)
def test_bad_tensors(position: int, value: object, message: str) -> None:
    args = inputs([0, 1])
    args[position] = value
    with pytest.raises(DiveError, match="steer_grouped_: " + message):
        ops.steer_grouped_(*args)


def test_bad_options() -> None:
    args = inputs([0, 1])
    with pytest.raises(DiveError, match="steer_grouped_: activation is 'relu', want one of silu"):
        ops.steer_grouped_(*args, activation="relu")
    for eps in (0.0, 1e-39, float("nan"), "small"):
        with pytest.raises(DiveError, match="steer_grouped_: eps is .*, want a number > 0"):
            ops.steer_grouped_(*args, eps=eps)
    assert ops.implementation("steer_grouped_", "cpu") == "pytorch"
