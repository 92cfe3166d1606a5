"""The Triton source of `dive::steer` under Triton's interpreter, through `dive.ops.steer`.

Triton reads TRITON_INTERPRET when it is imported, so test_kernels_interpreted.py runs this
file in its own process.
"""

import os
from types import SimpleNamespace

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by test_kernels_interpreted.py", allow_module_level=True)

import steer_terms
import torch
from torch import Tensor

from dive import ops, reference
from dive.bench import observe
from dive.errors.checks import ACTIVATIONS
from dive.kernels import launch_table as table
from dive.kernels import steer, steer_backward
from dive.ops import steering_torch, triton_path

triton_path.install("CPU")
F64 = torch.float64
HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def inputs(
    tokens: int, width: int, rank: int, dtype: torch.dtype, params: torch.dtype = torch.float32
) -> list[Tensor]:
    shapes = ((rank, width), (rank,), (width, rank), (width,), ())
    drawn = [torch.randn(tokens, width).to(dtype), *(torch.randn(s).to(params) for s in shapes)]
    return [x.requires_grad_() for x in drawn]


def results(function: object, args: list[Tensor], upstream: Tensor, **options: object) -> list:
    out = function(*args, **options)
    return [out.detach(), *torch.autograd.grad(out, args, upstream)]


def assert_as_good_as_pytorch(args: list[Tensor], **options: object) -> None:
    """The distance of each result from float64 is within twice that of the reference.

    One rounding of the operands is allowed in addition: with few tokens the reference's own error
    depends on chance, most of all in the gradients of bias and scale, whose terms cancel: there it
    is a rounding of the terms.
    """
    upstream = torch.randn(args[0].shape).to(args[0].dtype)
    exact = [x.detach().double().requires_grad_() for x in args]
    truth = results(reference.steer, exact, upstream.double(), **options)
    plain = results(reference.steer, args, upstream, **options)
    mine = results(ops.steer, args, upstream, **options)
    terms = steer_terms.norms(exact, upstream, **options)
    for position, (m, p, t) in enumerate(zip(mine, plain, truth, strict=True)):
        assert m.dtype == p.dtype and m.shape == p.shape
        size = terms.get(position, t.norm())
        slack = torch.finfo(upstream.dtype).eps + 8 * torch.finfo(torch.float32).eps
        bound = 2 * (p.double() - t).norm() + slack * size
        assert (m.double() - t).norm() <= bound, position


def test_the_kernels_are_what_runs() -> None:
    assert ops.implementation("steer", "cpu") == "triton"
    args = inputs(2, 8, 2, torch.float32)
    args[0].requires_grad_(False)
    with torch.no_grad():
        got = torch.ops.dive.steer(*args, None, "silu", False, 1e-6, True)
    want = steering_torch.forward(*[x.detach() for x in args], None, "silu", False, 1e-6, True)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, norm_preserving: bool) -> None:
    args = inputs(5, 24, 3, torch.float32)
    mask = torch.tensor([True, False, True, True, True])
    assert_as_good_as_pytorch(
        args, activation=activation, norm_preserving=norm_preserving, mask=mask
    )


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("rank", [0, 1, 17])
def test_ranks_and_dtypes(rank: int, dtype: torch.dtype, norm_preserving: bool) -> None:
    assert_as_good_as_pytorch(inputs(5, 37, rank, dtype), norm_preserving=norm_preserving)


@pytest.mark.parametrize("dtype", HALVES)
def test_parameters_of_the_streams_dtype(dtype: torch.dtype) -> None:
    assert_as_good_as_pytorch(inputs(5, 24, 3, dtype, params=dtype))


@pytest.mark.parametrize("norm_preserving", [False, True])
def test_more_tokens_and_columns_than_a_block(norm_preserving: bool) -> None:
    args = inputs(40, 133, 5, torch.float32)
    mask = torch.rand(40) > 0.3
    assert_as_good_as_pytorch(args, norm_preserving=norm_preserving, mask=mask)


@pytest.mark.parametrize("norm_preserving", [False, True])
def test_programs_that_take_several_blocks(
    norm_preserving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = inputs(100, 37, 3, torch.float32)
    upstream, options = torch.randn(100, 37), {"norm_preserving": norm_preserving}
    want = results(ops.steer, args, upstream, **options)
    for module in (steer, steer_backward):
        monkeypatch.setattr(module, "programs", lambda *given: min(given[3], 2))
    for got, one_each in zip(results(ops.steer, args, upstream, **options), want, strict=True):
        assert torch.equal(got, one_each)


def test_programs_keep_their_tokens_in_the_cache() -> None:
    mib, block = 2**20, 32 * 4096 * 2
    assert steer.shared(512, block, 1, 132, 50 * mib) == 128  # of 150, which fit; four blocks each
    assert steer.shared(512, 2 * block, 1, 132, 50 * mib) == 128  # of 132, which do not
    assert steer.shared(512, block, 2, 132, 50 * mib) == 256  # of 264, two blocks each
    assert steer.shared(512, block, 4, 132, 50 * mib) == 512
    assert steer.shared(100, block, 2, 132, 50 * mib) == 100
    assert steer.shared(4096, block // 16, 2, 132, 50 * mib) * block // 16 <= 0.75 * 50 * mib
    assert steer.shared(1, 1, 1, 1, 1) == 1


def test_few_tokens_come_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steer, "processors", lambda index: (132, 50 * 2**20))
    device = SimpleNamespace(index=0)
    for tokens, want in ((1, True), (800, True), (132 * 32, False)):
        x = SimpleNamespace(is_cuda=True, device=device, shape=(tokens, 4096))
        assert steer.has_few_tokens(x, 32) is want
    taken = []
    for module in (steer, steer_backward):
        monkeypatch.setattr(module, "has_few_tokens", lambda *_: True)
        small = lambda options: taken.append(1) or table.with_fewest_tokens(options)  # noqa: E731
        monkeypatch.setattr(module, "with_fewest_tokens", small)
    for dtype in (torch.float32, *HALVES):
        assert_as_good_as_pytorch(inputs(40, 37, 3, dtype), norm_preserving=True)
    assert len(taken) == 2 * 3


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_parameters_that_come_in_the_streams_dtype_change_no_bit(
    dtype: torch.dtype, norm_preserving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels round float32 parameters block by block: the result is the same without copies,
    and the backward pass may reuse the copies of the forward."""
    args = inputs(40, 37, 3, dtype)
    upstream, options = torch.randn(40, 37).to(dtype), {"norm_preserving": norm_preserving}
    want = results(ops.steer, args, upstream, **options)
    x, down, _, up, *_ = (one.detach() for one in args)
    narrow = steer.operands("steer_forward", down, up, x, 16, None)
    assert {one.dtype for one in narrow} == {dtype} and want[2].dtype == torch.float32
    assert steer.operands("steer_forward", down, up, x, 16, narrow) is narrow
    given = [one.detach() for one in args]
    out, pre, rstd = steer.forward(*given, None, "silu", norm_preserving, 1e-6, True, narrow)
    assert torch.equal(out, want[0])
    saved = steer_backward.backward(
        upstream, *given, None, pre, rstd, "silu", norm_preserving, narrow
    )
    for got, brought in zip(saved, want[1:], strict=True):
        assert got.dtype == brought.dtype and torch.equal(got, brought)
    for kernel in ("steer_forward", "steer_backward"):
        row = table._DEFAULTS[kernel](0, False, 16, 37)
        name = str(dtype).removeprefix("torch.")
        monkeypatch.setitem(table.TUNED, (kernel, 0, name, 16, 1024), {**row, "casts": 0})
    table._configured.cache_clear()
    assert steer.operands("steer_forward", down, up, x, 16, None)[0] is down
    for got, brought in zip(results(ops.steer, args, upstream, **options), want, strict=True):
        assert torch.equal(got, brought)
    monkeypatch.undo()
    table._configured.cache_clear()


@pytest.mark.parametrize("norm_preserving", [False, True])
def test_loads_ahead_of_a_sweep_change_no_bit(
    norm_preserving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = inputs(40, 300, 3, torch.bfloat16)
    want = ops.steer(*args, norm_preserving=norm_preserving)
    row = table._DEFAULTS["steer_forward"](0, False, 16, 300)
    monkeypatch.setitem(
        table.TUNED, ("steer_forward", 0, "bfloat16", 16, 1024), {**row, "STAGES": 3}
    )
    table._configured.cache_clear()
    assert torch.equal(ops.steer(*args, norm_preserving=norm_preserving), want)
    monkeypatch.undo()
    table._configured.cache_clear()


@pytest.mark.parametrize("norm_preserving", [False, True])
def test_rounds_of_the_backward_pass_add_up(
    norm_preserving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small workspace tokens are processed in rounds, which share their partial sums."""
    monkeypatch.setattr(steer_backward, "_MIXING_BYTES", 32 * 4 * 8)
    monkeypatch.setattr(steer_backward, "WORKSPACE_BYTES", 10 * 1024)
    monkeypatch.setattr(
        steer_backward, "backward_layout", steer_backward.backward_layout.__wrapped__
    )  # not cached
    rounds = steer_backward.backward_layout(70, 24, 3, 32, 64)
    assert rounds.tokens == 32
    args = inputs(70, 24, 3, torch.float32)
    assert_as_good_as_pytorch(args, norm_preserving=norm_preserving, mask=torch.rand(70) > 0.3)


def test_fresh_adapter_is_the_identity_bit_for_bit() -> None:
    for dtype in (torch.float32, *HALVES):
        h, down, bias, up, static, scale = inputs(5, 37, 3, dtype)
        h = (h.detach() * 300)[:, ::2]  # not contiguous
        with torch.no_grad():
            down, up, static = down[:, ::2], torch.zeros_like(up)[::2], torch.zeros(19)
            for norm_preserving in (False, True):
                out = ops.steer(h, down, bias, up, static, scale, norm_preserving=norm_preserving)
                assert torch.equal(out, h) and out.data_ptr() != h.data_ptr()


@pytest.mark.parametrize("norm_preserving", [False, True])
def test_masked_rows_pass_exactly_and_teach_nothing(norm_preserving: bool) -> None:
    args = inputs(5, 24, 3, torch.float32)
    mask = torch.tensor([True, False, True, False, True])
    upstream = torch.randn(5, 24)
    clean = results(ops.steer, args, upstream, mask=mask, norm_preserving=norm_preserving)
    with torch.no_grad():
        args[0][~mask] = float("nan")
    poisoned = results(ops.steer, args, upstream, mask=mask, norm_preserving=norm_preserving)
    assert poisoned[0][~mask].isnan().all() and torch.equal(poisoned[0][mask], clean[0][mask])
    assert torch.equal(poisoned[1][~mask], upstream[~mask])
    for got, want in zip(poisoned[1:], clean[1:], strict=True):
        assert torch.equal(got, want)


def test_rows_of_zero_norm() -> None:
    h, down, bias, up, static, scale = inputs(3, 8, 2, torch.float32)
    with torch.no_grad():
        up.zero_()
        scale.fill_(0.5)
        h[0] = 0
        static.copy_(-h[1] / 0.5)  # the result of row 1 is 0
    args = [h, down, bias, up, static, scale]
    upstream = torch.randn(3, 8)
    got = results(ops.steer, args, upstream, norm_preserving=True)
    want = results(reference.steer, args, upstream, norm_preserving=True)
    assert torch.equal(got[0][:2], torch.zeros(2, 8))
    torch.testing.assert_close(got, want)


def test_float16_gradients_far_outside_its_range() -> None:
    """Under a loss scale the products of the backward pass exceed the range of float16."""
    args = inputs(5, 24, 3, torch.float16)
    with torch.no_grad():
        args[0].mul_(300)
        args[3].mul_(40)
    upstream = 20000 * torch.randn(5, 24).clamp(-3, 3).half()
    exact = [x.detach().double().requires_grad_() for x in args]
    truth = results(reference.steer, exact, upstream.double())
    mine = results(ops.steer, args, upstream)
    for m, t in zip(mine[2:], truth[2:], strict=True):
        assert m.isfinite().all()
        assert (m.double() - t).norm() <= 4e-3 * t.norm()


def test_empty_batches_and_no_grad() -> None:
    args = inputs(0, 24, 3, torch.float32)
    got = results(ops.steer, args, torch.zeros(0, 24))
    assert got[0].shape == (0, 24) and all(not g.any() for g in got[1:])
    with torch.no_grad():
        out = ops.steer(*inputs(5, 24, 3, torch.float32))
    assert out.shape == (5, 24) and not out.requires_grad


def test_float64_stays_on_the_pytorch_path() -> None:
    args = [x.detach().double().requires_grad_() for x in inputs(3, 8, 2, torch.float32)]
    upstream = torch.randn(3, 8, dtype=F64)
    torch.testing.assert_close(
        results(ops.steer, args, upstream), results(reference.steer, args, upstream)
    )


@pytest.mark.parametrize("rank", [0, 1, 16, 64, 128])
@pytest.mark.parametrize("width", [24, 4096, 16384])
def test_the_workspace_is_bounded(width: int, rank: int) -> None:
    for tokens in (1, 5000, 10**6):
        layout = steer_backward.backward_layout(tokens, width, rank, 32, 64)
        floats = layout.partials * (2 * rank + 1) * width + layout.tokens * (2 * rank + 2)
        floats += layout.tokens // 16 * (rank + 1)
        assert 4 * floats <= steer_backward.WORKSPACE_BYTES
        assert layout.partials * layout.span >= layout.tokens and layout.partials >= 1
        assert layout.tokens >= min(tokens, 16384)


def test_every_key_of_the_table_has_a_row() -> None:
    for kernel in ("steer_forward", "steer_backward", "steer_parameters", "steer_reduce"):
        row = table.configuration(kernel, 90, torch.bfloat16, table.padded_rank(100), 10**6)
        assert row["num_warps"] in (4, 8) and row["enable_fp_fusion"] is True
        assert "residents" not in row  # which is not an option of a launch
    assert table.residents("steer_forward", 90, torch.bfloat16, 16, 4096) == table.RESIDENTS


@pytest.mark.parametrize(("dtype", "ran"), [(torch.float32, "triton"), (F64, "cpu operator")])
@pytest.mark.parametrize("with_backward", [False, True])
def test_dive_bench_sees_which_path_ran(dtype: torch.dtype, ran: str, with_backward: bool) -> None:
    given = inputs(4, 32, 2, dtype, dtype)

    def call() -> None:
        out = ops.steer(*given)
        if with_backward:
            out.sum().backward()

    assert observe.operator(call, torch.device("cpu")) == ran
