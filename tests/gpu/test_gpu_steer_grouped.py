"""`dive.ops.steer_grouped_` on a GPU: precision, tokens left alone, syncs, memory, graphs.

Skipped without a GPU. test_gpu_rehearsal.py runs all of it on a CPU (DIVE_REHEARSE_GPU=1), at
smaller sizes and against the PyTorch path.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dive import ops, reference
from dive.errors.checks import ACTIVATIONS

REHEARSAL = os.environ.get("DIVE_REHEARSE_GPU") == "1"
if not REHEARSAL:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device", allow_module_level=True)
    pytest.importorskip("triton")

DEVICE = torch.device("cpu") if REHEARSAL else torch.device("cuda", 0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
COUNT = 5
# a program per token, and blocks of tokens: at every rank, on a GPU of 132 multiprocessors or more
FEW, MANY = 33, 1000


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def sized(real: Any, rehearsed: Any) -> Any:
    return rehearsed if REHEARSAL else real


def inputs(
    tokens: int, width: int, rank: int, dtype: torch.dtype, params: torch.dtype | None = None
) -> list[Any]:
    """A third of the tokens in a row with one adapter, the others mixed, some without."""
    hidden, residual = (torch.randn(tokens, width, device=DEVICE).to(dtype) for _ in range(2))
    own = torch.randint(-1, COUNT + 1, (tokens,), device=DEVICE)
    own[: tokens // 3] = 1
    shapes = ((rank, width), (rank,), (width, rank), (width,), ())
    down, bias, up, static, scale = (torch.randn(COUNT, *s, device=DEVICE) * 0.1 for s in shapes)
    given = dtype if params is None else params
    return [hidden, residual, own, down.to(given), bias, up.to(given), static, scale]


def exactly(args: list[Any]) -> list[Any]:
    return [x.double() if x is not None and x.is_floating_point() else x for x in args]


def changed(function: Any, args: list[Any], **options: Any) -> Tensor:
    hidden = args[0].clone()
    before = [None if x is None else x.clone() for x in args[1:]]
    function(hidden, *args[1:], **options)
    assert all(x is y is None or torch.equal(x, y) for x, y in zip(before, args[1:], strict=True))
    return hidden


def by_steer(args: list[Any], **options: Any) -> Tensor:
    """In float64, adapter by adapter."""
    hidden, residual, own, *parameters = exactly(args)
    out = hidden.clone()
    for which in range(COUNT):
        index = (own[: hidden.shape[0]] == which).nonzero()[:, 0]
        h = hidden[index] if residual is None else hidden[index] + residual[index]
        out[index] += reference.steer(h, *(x[which] for x in parameters), **options) - h
    return out


def assert_within_twice(args: list[Any], **options: Any) -> None:
    """No further from float64 than twice what plain PyTorch in that dtype is."""
    truth = by_steer(args, **options)
    plain = changed(reference.steer_grouped_, args, **options)
    mine = changed(ops.steer_grouped_, args, **options)
    lost = (plain.double() - truth).norm()
    assert (mine.double() - truth).norm() <= 2 * lost + 1e-6 * truth.norm()
    assert lost <= 4 * torch.finfo(mine.dtype).eps * truth.norm()
    none = (args[2] < 0) | (args[2] >= COUNT)
    assert torch.equal(mine[none[: len(mine)]], args[0][none[: len(mine)]])
    assert torch.equal(mine, changed(ops.steer_grouped_, args, **options))


def test_triton_is_what_runs() -> None:
    assert ops.implementation("steer_grouped_", DEVICE) == sized("triton", "pytorch")


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("rank", [0, 3, 16, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_loses_no_more_than_twice_what_pytorch_loses(
    dtype: torch.dtype, rank: int, norm_preserving: bool
) -> None:
    for tokens, width in sized(((FEW, 4096), (MANY, 1000)), ((5, 64), (40, 100))):
        args = inputs(tokens, width, rank, dtype)
        assert_within_twice(args, norm_preserving=norm_preserving)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_float32_parameters_and_no_residual(activation: str, tokens: int) -> None:
    args = inputs(sized(tokens, 9), sized(1024, 64), 16, torch.bfloat16, torch.float32)
    args[1] = None
    assert_within_twice(args, activation=activation, eps=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_of_grouped_steering(dtype: torch.dtype) -> None:
    """Small, for a run under compute-sanitizer; the last has many tokens."""
    for tokens, width, rank in ((7, 200, 3), (sized(20000, 70), 40, 3)):
        for norm_preserving in (False, True):
            args = inputs(tokens, width, rank, dtype)
            truth = by_steer(args, norm_preserving=norm_preserving)
            got = changed(ops.steer_grouped_, args, norm_preserving=norm_preserving)
            error = (got.double() - truth).norm() / truth.norm()
            assert error <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_without_an_adapter_keep_every_bit(
    dtype: torch.dtype, norm_preserving: bool, tokens: int
) -> None:
    args = inputs(sized(tokens, 30), sized(4096, 64), 16, dtype)
    none = (args[2] < 0) | (args[2] >= COUNT)
    clean = changed(ops.steer_grouped_, args, norm_preserving=norm_preserving)
    args[0][none] = float("nan")
    args[0][none, 1::2] = float("inf")
    args[2][none] = torch.tensor([-1, COUNT, 2**62, -(2**62)], device=DEVICE).repeat(MANY)[
        : int(none.sum())
    ]
    got = changed(ops.steer_grouped_, args, norm_preserving=norm_preserving)
    assert torch.equal(got[~none], clean[~none])
    assert torch.equal(got[none].view(torch.uint8), args[0][none].view(torch.uint8))


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fresh_adapters_are_the_identity(dtype: torch.dtype, tokens: int) -> None:
    args = inputs(sized(tokens, 9), sized(4096, 64), 16, dtype)
    args[5].zero_(), args[6].zero_()
    for norm_preserving in (False, True):
        got = changed(ops.steer_grouped_, args, norm_preserving=norm_preserving)
        assert torch.equal(got, args[0])


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_views_of_the_buffers_of_an_engine(tokens: int) -> None:
    """Packed parameters, and a buffer of adapters that is longer than the batch."""
    args = inputs(sized(tokens, 9), sized(1024, 64), 16, torch.bfloat16)
    want = changed(ops.steer_grouped_, args)
    packed_down = torch.zeros(COUNT, 17, args[0].shape[1] + 1, device=DEVICE).bfloat16()
    packed_up = torch.zeros(COUNT, args[0].shape[1], 17, device=DEVICE).bfloat16()
    packed_down[:, 1:, :-1], packed_up[:, :, 1:] = args[3], args[5]
    own = torch.cat([args[2], torch.ones(50, dtype=torch.int64, device=DEVICE)])
    args = [*args[:2], own, packed_down[:, 1:, :-1], args[4], packed_up[:, :, 1:], *args[6:]]
    torch.testing.assert_close(changed(ops.steer_grouped_, args), want)


def captured(step: Callable[[], None]) -> Callable[[], None]:
    if REHEARSAL:
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("norm_preserving", [False, True])
def test_a_graph_is_replayed_with_other_adapters(norm_preserving: bool, tokens: int) -> None:
    """Captured while no token had one, as an engine does before its first request."""
    args = inputs(sized(tokens, 9), sized(4096, 64), 16, torch.bfloat16)
    options = {"norm_preserving": norm_preserving}
    given, own = [x.clone() for x in args], args[2].clone()
    given[2].fill_(-1)
    replay = captured(lambda: ops.steer_grouped_(*given, **options))
    for now in (own, own.roll(3), torch.full_like(own, -1), torch.full_like(own, COUNT - 1)):
        given[0].copy_(args[0])
        given[2].copy_(now)
        args[2] = now
        replay()
        assert torch.equal(given[0], changed(ops.steer_grouped_, args, **options))
    given[3].mul_(-1), args[3].mul_(-1)  # an adapter was replaced
    given[0].copy_(args[0])
    replay()
    assert torch.equal(given[0], changed(ops.steer_grouped_, args, **options))


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_it_asks_the_device_nothing_and_takes_no_memory(tokens: int) -> None:
    args = inputs(sized(tokens, 9), sized(4096, 64), 16, torch.bfloat16)
    ops.steer_grouped_(*args, norm_preserving=True)  # compiles
    if REHEARSAL:
        return
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.steer_grouped_(*args, norm_preserving=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() == before


def test_compiled_whole() -> None:
    args = inputs(sized(FEW, 9), sized(1024, 64), 16, torch.bfloat16)

    def layer(hidden: Tensor, *others: Any) -> Tensor:
        hidden = hidden + 1
        ops.steer_grouped_(hidden, *others)
        return hidden

    compiled = torch.compile(layer, fullgraph=True, backend=sized("inductor", "aot_eager"))
    torch.testing.assert_close(compiled(*args), layer(*args))


def test_float64_runs_too() -> None:
    args = exactly(inputs(9, 24, 3, torch.float32))
    torch.testing.assert_close(changed(ops.steer_grouped_, args), by_steer(args))


def test_beyond_two_gigabytes(alone: None) -> None:
    """More elements of the stream than 32 bits count; about 9 GB."""
    if not REHEARSAL and torch.cuda.get_device_properties(DEVICE).total_memory < 30 * 2**30:
        pytest.skip("needs 30 GB")
    width = sized(8192, 64)
    tokens = sized(2**31 // width + 64, 96)
    args = inputs(64, width, 16, torch.bfloat16)
    hidden, residual = (torch.zeros(tokens, width, device=DEVICE).bfloat16() for _ in range(2))
    own = torch.full((tokens,), -1, device=DEVICE)
    hidden[-64:], residual[-64:], own[-64:] = args[:3]
    ops.steer_grouped_(hidden, residual, own, *args[3:])
    assert not hidden[:-64].any()
    torch.testing.assert_close(hidden[-64:], changed(ops.steer_grouped_, args))
