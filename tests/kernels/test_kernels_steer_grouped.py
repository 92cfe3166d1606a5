"""The Triton source of `dive::steer_grouped_` under Triton's interpreter, through `dive.ops`.

Triton reads TRITON_INTERPRET when it is imported, so test_kernels_interpreted.py runs this
file in its own process. Every test runs with a program per token, and with one per block of tokens
and adapter.
"""

import os
from types import SimpleNamespace
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by test_kernels_interpreted.py", allow_module_level=True)

import torch
from torch import Tensor

from dive import ops, reference
from dive.errors import DiveError
from dive.errors.checks import ACTIVATIONS
from dive.kernels import launch_table as table
from dive.kernels import steer_grouped
from dive.ops import steering_grouped_torch, triton_path

triton_path.install("CPU")
HALVES = (torch.float16, torch.bfloat16)
FLOAT = torch.float32


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, params=["a program per token", "blocks of tokens"])
def launched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    few = request.param == "a program per token"
    monkeypatch.setattr(steer_grouped, "has_few_tokens", lambda *_: few)
    return request.param


def inputs(
    adapters: list[int], width: int, rank: int, dtype: torch.dtype, **kind: bool
) -> list[Any]:
    """kind: without `residual`, or with parameters of the dtype of hidden (`narrow`)."""
    count = 3
    hidden, residual = (torch.randn(len(adapters), width).to(dtype) for _ in range(2))
    shapes = ((count, rank, width), (count, rank), (count, width, rank), (count, width), (count,))
    parameters = [torch.randn(shape) for shape in shapes]
    if kind.get("narrow"):
        parameters = [x.to(dtype) for x in parameters]
    beside = residual if kind.get("residual", True) else None
    return [hidden, beside, torch.tensor(adapters, dtype=torch.int64), *parameters]


def changed(function: Any, args: list[Any], **options: Any) -> Tensor:
    given = [None if x is None else x.clone() for x in args]
    function(*given, **options)
    for before, after in zip(args[1:], given[1:], strict=True):
        assert before is after is None or torch.equal(before, after)
    return given[0]


def assert_as_good_as_pytorch(args: list[Any], **options: Any) -> None:
    """No further from float64 than twice the reference, and a rounding of the operands."""
    floating = [isinstance(x, Tensor) and x.is_floating_point() for x in args]
    exact = [x.double() if wide else x for x, wide in zip(args, floating, strict=True)]
    truth = changed(reference.steer_grouped_, exact, **options)
    plain = changed(reference.steer_grouped_, args, **options)
    mine = changed(ops.steer_grouped_, args, **options)
    none = torch.tensor([not 0 <= a < 3 for a in args[2].tolist()])
    assert torch.equal(mine[none], args[0][none])
    slack = (torch.finfo(mine.dtype).eps / 4 + 8 * torch.finfo(FLOAT).eps) * truth.norm()
    assert (mine.double() - truth).norm() <= 2 * (plain.double() - truth).norm() + slack
    assert (plain.double() - truth).norm() <= 4 * torch.finfo(mine.dtype).eps * truth.norm()


MIXED = [0, 2, -1, 1, 0, 3, 2, 2, 1]


def test_the_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops.implementation("steer_grouped_", "cpu") == "triton"
    monkeypatch.setattr(steering_grouped_torch, "steer", None)
    assert_as_good_as_pytorch(inputs(MIXED, 24, 3, FLOAT))


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, norm_preserving: bool) -> None:
    args = inputs(MIXED, 24, 3, FLOAT)
    assert_as_good_as_pytorch(args, activation=activation, norm_preserving=norm_preserving, eps=0.1)


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT, *HALVES])
@pytest.mark.parametrize("rank", [0, 1, 17])
def test_ranks_and_dtypes(
    rank: int, dtype: torch.dtype, residual: bool, norm_preserving: bool
) -> None:
    args = inputs(MIXED, 37, rank, dtype, residual=residual)
    assert_as_good_as_pytorch(args, norm_preserving=norm_preserving)


@pytest.mark.parametrize("dtype", HALVES)
def test_parameters_of_the_streams_dtype_and_a_wide_residual(dtype: torch.dtype) -> None:
    args = inputs(MIXED, 24, 3, dtype, narrow=True)
    assert_as_good_as_pytorch(args)
    wide = [args[0], args[1].float(), *args[2:]]
    assert torch.equal(changed(ops.steer_grouped_, wide), changed(ops.steer_grouped_, args))


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT, torch.bfloat16])
def test_more_tokens_and_columns_than_a_block(dtype: torch.dtype, norm_preserving: bool) -> None:
    adapters = [0] * 17 + [-1] * 18 + [2, 1] * 3
    args = inputs(adapters, 1100, 5, dtype)
    assert_as_good_as_pytorch(args, norm_preserving=norm_preserving)


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT, *HALVES])
def test_tokens_without_an_adapter_keep_every_bit(
    dtype: torch.dtype, norm_preserving: bool
) -> None:
    adapters = [0, -1, 3, 2, -(2**40), 2**62, 1]
    none = torch.tensor([not 0 <= a < 3 for a in adapters])
    args = inputs(adapters, 37, 3, dtype)
    clean = changed(ops.steer_grouped_, args, norm_preserving=norm_preserving)
    args[0][none] = torch.tensor([float("nan"), float("inf"), -0.0, 1.0])[:, None].to(dtype)
    got = changed(ops.steer_grouped_, args, norm_preserving=norm_preserving)
    assert torch.equal(got[~none], clean[~none]) and not (clean == args[0])[~none].all()
    kept, before = got[none], args[0][none]
    assert torch.equal(kept.view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT, *HALVES])
def test_fresh_adapters_are_the_identity(dtype: torch.dtype, norm_preserving: bool) -> None:
    args = inputs(MIXED, 37, 3, dtype)
    args[0] *= 300
    args[5].zero_(), args[6].zero_()
    got = changed(ops.steer_grouped_, args, norm_preserving=norm_preserving)
    assert torch.equal(got, args[0])


def test_states_of_zero_norm() -> None:
    args = inputs([0, 1, 2], 24, 3, FLOAT)
    args[1][0] = -args[0][0]  # the state is 0: the edit is scaled away
    args[5].zero_()
    args[7].fill_(0.5)
    args[6][1] = -(args[0] + args[1])[1] / 0.5  # the state becomes 0
    got = changed(ops.steer_grouped_, args, norm_preserving=True)
    assert torch.equal(got[0], args[0][0])
    torch.testing.assert_close(got, changed(reference.steer_grouped_, args, norm_preserving=True))


@pytest.mark.parametrize("norm_preserving", [False, True])
def test_views_of_buffers(norm_preserving: bool) -> None:
    args = inputs(MIXED, 24, 5, FLOAT)
    options = {"norm_preserving": norm_preserving}
    want = changed(ops.steer_grouped_, args, **options)
    wider = torch.full((11, 40), 9.0)
    wider[1:10, 3:27] = args[0]
    packed_down, packed_up = torch.full((3, 6, 25), 9.0), torch.full((3, 24, 6), 9.0)
    packed_down[:, 1:, :24], packed_down[:, 1:, 24], packed_up[:, :, 1:] = args[3], args[4], args[5]
    parts = (packed_down[:, 1:, :24], packed_down[:, 1:, 24], packed_up[:, :, 1:])
    apart = [torch.stack([x, torch.full_like(x, 9)], -1)[..., 0] for x in (args[2], *args[6:])]
    beside = args[1].t().contiguous().t()
    ops.steer_grouped_(wider[1:10, 3:27], beside, apart[0], *parts, *apart[1:], **options)
    assert torch.equal(wider[1:10, 3:27], want)
    wider[1:10, 3:27] = 9.0
    assert (wider == 9).all()
    columns = args[0].t().contiguous().t()
    ops.steer_grouped_(columns, *args[1:], **options)
    assert torch.equal(columns, want)


def test_entries_past_the_tokens_are_not_read_and_too_few_are_refused() -> None:
    args = inputs(MIXED, 24, 3, FLOAT)
    want = changed(ops.steer_grouped_, args)
    longer = [*args[:2], torch.cat([args[2], torch.tensor([1, 0, 2])]), *args[3:]]
    assert torch.equal(changed(ops.steer_grouped_, longer), want)
    with pytest.raises(DiveError, match=r"adapters is int64 \[8\] .*, want int64 \[9 or more\]"):
        ops.steer_grouped_(*args[:2], args[2][1:], *args[3:])


def test_no_tokens_and_float64() -> None:
    assert changed(ops.steer_grouped_, inputs([], 24, 3, FLOAT)).shape == (0, 24)
    args = [x.double() if x.is_floating_point() else x for x in inputs(MIXED, 24, 3, FLOAT)]
    torch.testing.assert_close(
        changed(ops.steer_grouped_, args), changed(reference.steer_grouped_, args)
    )


def test_loads_ahead_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    args = inputs(MIXED, 1100, 3, torch.bfloat16)
    want = changed(ops.steer_grouped_, args, norm_preserving=True)
    options = table._DEFAULTS["steer_token"](0, False, 16, 1100)
    key = ("steer_token", 0, "bfloat16", 16, 2048)
    monkeypatch.setitem(table.TUNED, key, {**options, "STAGES": None})
    table._configured.cache_clear()
    got = changed(ops.steer_grouped_, args, norm_preserving=True)
    monkeypatch.undo()
    table._configured.cache_clear()
    assert torch.equal(got, want)


def test_which_tokens_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(steer_grouped, "processors", lambda index: (132, 50 * 2**20))
    device = SimpleNamespace(index=0)
    for tokens, padded, want in (
        (1, 128, True), (33, 128, True), (34, 128, False), (264, 16, True), (265, 0, False),
    ):  # fmt: skip
        x = SimpleNamespace(is_cuda=True, device=device, shape=(tokens, 4096))
        assert steer_grouped.has_few_tokens(x, padded) is want
    assert not steer_grouped.has_few_tokens(torch.zeros(1, 8), 16)
