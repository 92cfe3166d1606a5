"""Both operators on a GPU: precision, determinism, memory, syncs, capture. Skipped without one."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dive import ops, reference

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("triton")

DEVICE = torch.device("cuda", 0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MIB = 2**20


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    torch.manual_seed(0)
    torch.cuda.synchronize()
    yield
    torch.cuda.set_sync_debug_mode("default")


def steer_inputs(
    tokens: int, width: int, rank: int, dtype: torch.dtype, params: torch.dtype = torch.float32
) -> list[Tensor]:
    shapes = ((rank, width), (rank,), (width, rank), (width,), ())
    drawn = [torch.randn(tokens, width, device=DEVICE).to(dtype)]
    drawn += [torch.randn(s, device=DEVICE).to(params) * 0.1 for s in shapes]
    return [x.detach().requires_grad_() for x in drawn]


def steer_results(function: Any, args: list[Tensor], upstream: Tensor, **options: Any) -> list:
    out = function(*args, **options)
    return [out.detach(), *torch.autograd.grad(out, args, upstream)]


def loss_inputs(
    count: int, vocab: int, width: int, dtype: torch.dtype, live: float = 1.0, **more: Any
) -> dict[str, Any]:
    weights = torch.rand(count, device=DEVICE) + 0.1
    weights *= torch.rand(count, device=DEVICE) < live
    given: dict[str, Any] = {
        "hidden": torch.randn(count, width, device=DEVICE).to(dtype).requires_grad_(),
        "lm_head": (torch.randn(vocab, width, device=DEVICE) / width**0.5).to(dtype),
        "targets": torch.randint(0, vocab, (count,), device=DEVICE),
        "weights": weights.requires_grad_(),
    }
    if more.get("teacher"):
        given["teacher_hidden"] = torch.randn(count, width, device=DEVICE).to(dtype)
    if more.get("bias"):
        given["bias"] = torch.randn(vocab, device=DEVICE).to(dtype)
    return given


def exactly(given: Any) -> Any:
    if isinstance(given, Tensor):
        if not given.is_floating_point():
            return given
        return given.detach().double().requires_grad_(given.requires_grad)
    if isinstance(given, dict):
        return {name: exactly(value) for name, value in given.items()}
    return [exactly(value) for value in given]


def assert_within_twice(mine: Any, plain: Any, truth: Any, dtype: torch.dtype) -> None:
    for position, (m, p, t) in enumerate(zip(mine, plain, truth, strict=True)):
        bound = 2 * (p.double() - t).norm() + 1e-6 * t.norm()
        if t.numel() < 256:  # a few sums: how near the plain one came is a matter of luck
            bound += torch.finfo(dtype).eps * t.norm()
        assert (m.double() - t).norm() <= bound, position


def test_triton_is_what_runs() -> None:
    for operator in ("steer", "decisive_cross_entropy"):
        assert ops.implementation(operator, "cuda") == "triton"


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("rank", [0, 3, 16, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_steer_loses_no_more_than_twice_what_pytorch_loses(
    dtype: torch.dtype, rank: int, norm_preserving: bool
) -> None:
    for tokens, width in ((300, 1000), (129, 4096)):
        args = steer_inputs(tokens, width, rank, dtype)
        mask = torch.rand(tokens, device=DEVICE) > 0.2
        options = {"mask": mask, "norm_preserving": norm_preserving}
        upstream = torch.randn(tokens, width, device=DEVICE).to(dtype)
        truth = steer_results(reference.steer, exactly(args), upstream.double(), **options)
        plain = steer_results(reference.steer, args, upstream, **options)
        mine = steer_results(ops.steer, args, upstream, **options)
        assert_within_twice(mine, plain, truth, dtype)
        again = steer_results(ops.steer, args, upstream, **options)
        assert all(torch.equal(a, b) for a, b in zip(mine, again, strict=True))


@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh", "identity"])
def test_steer_activations(activation: str) -> None:
    args = steer_inputs(300, 1024, 16, torch.bfloat16)
    upstream = torch.randn(300, 1024, device=DEVICE).bfloat16()
    options = {"activation": activation}
    truth = steer_results(reference.steer, exactly(args), upstream.double(), **options)
    plain = steer_results(reference.steer, args, upstream, **options)
    assert_within_twice(
        steer_results(ops.steer, args, upstream, **options), plain, truth, torch.bfloat16
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fresh_adapter_is_the_identity(dtype: torch.dtype) -> None:
    h, down, bias, up, static, scale = steer_inputs(500, 4096, 16, dtype)
    with torch.no_grad():
        up.zero_(), static.zero_()
        for norm_preserving in (False, True):
            out = ops.steer(300 * h, down, bias, up, static, scale, norm_preserving=norm_preserving)
            assert torch.equal(out, 300 * h)


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("softcap", [None, 8.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_loses_no_more_than_twice_what_pytorch_loses(
    dtype: torch.dtype, softcap: float | None, teacher: bool
) -> None:
    for vocab in (1003, 32000):
        given = loss_inputs(600, vocab, 256, dtype, 0.4, teacher=teacher, bias=softcap is not None)
        options: dict[str, Any] = {"softcap": softcap, "reduction": "none"}
        options |= {"kd_weight": 0.5, "temperature": 2.0} if teacher else {}
        upstream = torch.randn(600, device=DEVICE)

        def results(function: Any, values: Any, chosen: Any = options, up: Any = upstream) -> list:
            got = function(**values, **chosen)
            wanted = [values["hidden"], values["weights"]]
            grads = torch.autograd.grad(got.loss, wanted, up.to(got.loss.dtype))
            return [got.loss.detach(), got.lse, *grads]

        truth = results(reference.decisive_cross_entropy, exactly(given))
        plain = results(reference.decisive_cross_entropy, given)
        mine = results(ops.decisive_cross_entropy, given)
        assert_within_twice(mine, plain, truth, dtype)
        again = results(ops.decisive_cross_entropy, given)
        assert all(torch.equal(a, b) for a, b in zip(mine, again, strict=True))


def test_no_host_sync_with_rows_and_one_without() -> None:
    given = loss_inputs(600, 5000, 256, torch.bfloat16, 0.4, teacher=True)
    rows = given["weights"].detach().nonzero()[:, 0]
    rows = torch.cat([rows, rows.new_full((7,), -1)])
    options = {"kd_weight": 0.5, "token_class": torch.zeros_like(given["targets"])}

    def step(listed: Tensor | None) -> None:
        ops.decisive_cross_entropy(**given, rows=listed, **options).loss.backward()

    step(rows)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    step(rows)
    with pytest.raises(RuntimeError, match="synchroniz"):
        step(None)


@pytest.mark.parametrize("teacher", [False, True])
def test_memory_stays_within_chunk_bytes(teacher: bool) -> None:
    vocab, width, count = 64000, 128, 4096
    given = loss_inputs(count, vocab, width, torch.bfloat16, teacher=teacher)
    rows = torch.arange(count, device=DEVICE)
    options = {"kd_weight": 0.5} if teacher else {}
    budget = 160 * MIB * (1 + teacher)
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = ops.decisive_cross_entropy(**given, rows=rows, chunk_bytes=budget, **options).loss
        peak = torch.cuda.max_memory_allocated() - before
    assert loss.isfinite()
    # beside the logits: the stored gradient, a chunk's gathered states and vectors of N numbers
    assert peak <= budget + 4 * count * width * 2 + 200 * count


def test_capture_and_replay_with_changed_weights_and_rows() -> None:
    given = loss_inputs(256, 5000, 128, torch.bfloat16, 0.5)
    rows = torch.full((256,), -1, device=DEVICE)

    def fill(weights: Tensor) -> None:
        with torch.no_grad():
            given["weights"].copy_(weights)
        live = weights.nonzero()[:, 0]
        rows.fill_(-1)
        rows[: live.shape[0]] = live

    def step() -> tuple[Tensor, Tensor]:
        loss = ops.decisive_cross_entropy(**given, rows=rows).loss
        return loss.detach(), torch.autograd.grad(loss, given["hidden"])[0]

    fill(given["weights"].detach().clone())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, grad = step()
    for share in (0.9, 0.1, 0.0):
        fill(torch.rand(256, device=DEVICE) * (torch.rand(256, device=DEVICE) < share))
        graph.replay()
        want_loss, want_grad = step()
        assert torch.equal(loss, want_loss) and torch.equal(grad, want_grad)


def test_capture_of_steer() -> None:
    args = steer_inputs(256, 1024, 16, torch.bfloat16)
    upstream = torch.randn(256, 1024, device=DEVICE).bfloat16()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            steer_results(ops.steer, args, upstream)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = steer_results(ops.steer, args, upstream)
    with torch.no_grad():
        args[0].normal_()
    graph.replay()
    for got, want in zip(captured, steer_results(ops.steer, args, upstream), strict=True):
        assert torch.equal(got, want)


def test_compiled_whole() -> None:
    args = steer_inputs(64, 256, 3, torch.bfloat16)
    given = loss_inputs(64, 1003, 256, torch.bfloat16, 0.5)
    rows = given["weights"].detach().nonzero()[:, 0]

    def both(*tensors: Tensor) -> Tensor:
        steered = ops.steer(*tensors)
        values = {**given, "hidden": steered}
        return ops.decisive_cross_entropy(**values, rows=rows).loss

    compiled = torch.compile(both, fullgraph=True)
    loss, want = compiled(*args), both(*args)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(torch.autograd.grad(loss, args), torch.autograd.grad(want, args))


def test_float64_runs_too() -> None:
    args = exactly(steer_inputs(9, 24, 3, torch.float32))
    torch.testing.assert_close(ops.steer(*args), reference.steer(*args))
    given = exactly(loss_inputs(9, 37, 24, torch.float32))
    want = reference.decisive_cross_entropy(**given).loss
    torch.testing.assert_close(ops.decisive_cross_entropy(**given).loss, want)


@pytest.mark.parametrize("vocab", [128256])
def test_offsets_beyond_two_gigabytes(vocab: int) -> None:
    """A chunk of more elements than 32 bits count; about 12 GB."""
    if torch.cuda.get_device_properties(DEVICE).total_memory < 30 * 2**30:
        pytest.skip("needs 30 GB")
    count = 2**31 // vocab + 512
    given = loss_inputs(count, vocab, 64, torch.bfloat16)
    rows = torch.arange(count, device=DEVICE)
    big = ops.decisive_cross_entropy(**given, rows=rows, chunk_bytes=2**36)
    small = ops.decisive_cross_entropy(**given, rows=rows)
    torch.testing.assert_close(big.row_ce, small.row_ce)
    grads = [torch.autograd.grad(r.loss, given["hidden"])[0] for r in (big, small)]
    torch.testing.assert_close(*grads)
