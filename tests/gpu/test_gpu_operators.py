"""Both operators on a GPU: precision, determinism, memory, syncs, capture, parity with others.

Skipped without a GPU. test_gpu_rehearsal.py runs all of it on a CPU (DIVE_REHEARSE_GPU=1), at
smaller sizes and against the PyTorch path, so that no minute of a GPU goes to a typo.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import steer_terms
import torch
import torch.nn.functional as F
from torch import Tensor

from dive import ops, reference
from dive.errors import DiveError
from dive.ops import chunks as loss_chunks

REHEARSAL = os.environ.get("DIVE_REHEARSE_GPU") == "1"
if not REHEARSAL:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device", allow_module_level=True)
    pytest.importorskip("triton")

DEVICE = torch.device("cpu") if REHEARSAL else torch.device("cuda", 0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MIB = 2**20


def sized(real: Any, rehearsed: Any) -> Any:
    return rehearsed if REHEARSAL else real


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    torch.manual_seed(0)
    if REHEARSAL:
        yield
        return
    torch.cuda.synchronize()
    yield
    torch.cuda.set_sync_debug_mode("default")


@contextmanager
def no_host_sync() -> Iterator[None]:
    if REHEARSAL:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(step: Callable[[], Any]) -> tuple[list[Tensor], Callable[[], None]]:
    """Outputs of a step in a CUDA graph, and what replays it into them."""
    if REHEARSAL:
        outputs = [x.clone() for x in step()]

        def again() -> None:
            for mine, new in zip(outputs, step(), strict=True):
                mine.copy_(new)

        return outputs, again
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = list(step())
    return outputs, graph.replay


def peak_of(function: Callable[[], Any]) -> int:
    """Bytes that the second call asks for beside what was there, whatever the allocator gives."""
    if REHEARSAL:
        function()
        return 0
    asked = "requested_bytes.all"
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()[f"{asked}.current"]
        function()
    return torch.cuda.memory_stats()[f"{asked}.peak"] - before


def workspace_of_products(rows: int, vocab: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that PyTorch's own products of a chunk take for the time of a call: cuBLASLt's."""
    if REHEARSAL:  # a CPU has no narrow product with a wide result
        return 0
    states, head = (torch.zeros(n, width, device=DEVICE, dtype=dtype) for n in (rows, vocab))
    logits = torch.zeros(rows, vocab, device=DEVICE)
    narrow, wide = logits.to(dtype), torch.float32
    most = max(
        peak_of(lambda: torch.mm(states, head.t(), out_dtype=wide, out=logits)),
        # beside what it returns
        peak_of(lambda: torch.mm(narrow, head, out_dtype=wide)) - 4 * rows * width,
    )
    assert most <= 64 * MIB
    return max(most, 0)


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


def assert_within_twice(
    mine: Any, plain: Any, truth: Any, dtype: torch.dtype, terms: dict[int, Tensor] | None = None
) -> None:
    """No further from float64 than twice what plain PyTorch in that dtype is.

    Of a few sums it is luck how near the plain ones came, most so where terms cancel (gradients of
    bias and scale, the norms of whose terms are given): they may be off by a rounding of those.
    """
    for position, (m, p, t) in enumerate(zip(mine, plain, truth, strict=True)):
        bound = 2 * (p.double() - t).norm() + 1e-6 * t.norm()
        if t.numel() < 256:
            size = (terms or {}).get(position, t.norm())
            bound += (torch.finfo(dtype).eps + 8 * torch.finfo(torch.float32).eps) * size
        assert (m.double() - t).norm() <= bound, position


def test_a_gradient_of_zero_is_not_within_twice() -> None:
    args = steer_inputs(*sized((300, 1024), (30, 100)), 16, torch.bfloat16)
    exact = exactly(args)
    # the edit itself, so that no sum cancels
    upstream = (reference.steer(*exact) - exact[0]).detach().bfloat16()
    truth = steer_results(reference.steer, exact, upstream.double())
    mine = steer_results(ops.steer, args, upstream)
    terms = steer_terms.norms(exact, upstream)
    assert_within_twice(mine, mine, truth, torch.bfloat16, terms)
    for position, (result, size) in enumerate(zip(mine, truth, strict=True)):
        spoilt = [*mine[:position], torch.zeros_like(result), *mine[position + 1 :]]
        with pytest.raises(AssertionError):
            assert_within_twice(spoilt, mine, truth, torch.bfloat16, terms)
        assert terms.get(position, size.norm()) < 1.5 * size.norm()


def test_triton_is_what_runs() -> None:
    for operator in ("steer", "decisive_cross_entropy"):
        assert ops.implementation(operator, DEVICE) == sized("triton", "pytorch")


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("rank", [0, 3, 16, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_steer_loses_no_more_than_twice_what_pytorch_loses(
    dtype: torch.dtype, rank: int, norm_preserving: bool
) -> None:
    # the last has more blocks of tokens than fit into the cache at a time
    for tokens, width in sized(((300, 1000), (129, 4096), (20000, 2048)), ((30, 100), (12, 256))):
        args = steer_inputs(tokens, width, rank, dtype)
        mask = torch.rand(tokens, device=DEVICE) > 0.2
        options = {"mask": mask, "norm_preserving": norm_preserving}
        upstream = torch.randn(tokens, width, device=DEVICE).to(dtype)
        truth = steer_results(reference.steer, exactly(args), upstream.double(), **options)
        plain = steer_results(reference.steer, args, upstream, **options)
        mine = steer_results(ops.steer, args, upstream, **options)
        terms = steer_terms.norms(exactly(args), upstream, **options)
        assert_within_twice(mine, plain, truth, dtype, terms)
        again = steer_results(ops.steer, args, upstream, **options)
        assert all(torch.equal(a, b) for a, b in zip(mine, again, strict=True))


@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh", "identity"])
def test_steer_activations(activation: str) -> None:
    tokens, width = sized((300, 1024), (30, 64))
    args = steer_inputs(tokens, width, 16, torch.bfloat16)
    upstream = torch.randn(tokens, width, device=DEVICE).bfloat16()
    options = {"activation": activation}
    truth = steer_results(reference.steer, exactly(args), upstream.double(), **options)
    plain = steer_results(reference.steer, args, upstream, **options)
    mine = steer_results(ops.steer, args, upstream, **options)
    terms = steer_terms.norms(exactly(args), upstream, **options)
    assert_within_twice(mine, plain, truth, torch.bfloat16, terms)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fresh_adapter_is_the_identity(dtype: torch.dtype) -> None:
    h, down, bias, up, static, scale = steer_inputs(*sized((500, 4096), (50, 96)), 16, dtype)
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
    count = sized(600, 60)
    for vocab in sized((1003, 32000), (103, 2100)):
        given = loss_inputs(
            count, vocab, sized(256, 32), dtype, 0.4, teacher=teacher, bias=softcap is not None
        )
        options: dict[str, Any] = {"softcap": softcap, "reduction": "none"}
        options |= {"kd_weight": 0.5, "temperature": 2.0} if teacher else {}
        upstream = torch.randn(count, device=DEVICE)

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


def test_every_kernel_of_the_operators() -> None:
    """Small, for a run under compute-sanitizer; test_kernels_cross_entropy.py counts what it
    launches."""
    for norm_preserving in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            args = steer_inputs(*sized((70, 200), (20, 40)), 3, dtype)
            options = {"norm_preserving": norm_preserving}
            upstream = torch.randn_like(args[0])
            exact = exactly(args)
            truth = steer_results(reference.steer, exact, upstream.double(), **options)
            plain = steer_results(reference.steer, args, upstream, **options)
            mine = steer_results(ops.steer, args, upstream, **options)
            terms = steer_terms.norms(exact, upstream, **options)
            assert_within_twice(mine, plain, truth, dtype, terms)
    for teacher in (False, True):
        # several chunks, and a vocabulary that nothing divides
        given = loss_inputs(*sized((600, 1003, 64), (20, 103, 16)), torch.bfloat16, teacher=teacher)
        more: dict[str, Any] = {"softcap": 8.0} | ({"kd_weight": 0.5} if teacher else {})

        def results(function: Any, values: Any, chosen: Any) -> list:
            got = function(**values, **chosen)
            return [got.loss.detach(), *torch.autograd.grad(got.loss, values["hidden"])]

        truth = results(reference.decisive_cross_entropy, exactly(given), more)
        plain = results(reference.decisive_cross_entropy, given, more)
        mine = results(ops.decisive_cross_entropy, given, more | {"chunk_bytes": 1})
        assert_within_twice(mine, plain, truth, torch.bfloat16)


WEIGHTS: dict[str, Callable[[int], Tensor]] = {
    "one": lambda n: torch.ones(n, device=DEVICE),
    "random": lambda n: torch.rand(n, device=DEVICE) + 0.1,
    "mostly zero": lambda n: torch.rand(n, device=DEVICE) * (torch.rand(n, device=DEVICE) < 0.1),
    "one huge": lambda n: torch.rand(n, device=DEVICE).index_fill_(
        0, torch.tensor([1], device=DEVICE), 1e6
    ),
}


@pytest.mark.parametrize("sharpness", [0.01, 30.0])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_peaked_and_flat(dtype: torch.dtype, weights: str, sharpness: float) -> None:
    """Half of the rows are nearly certain where sharpness is large."""
    count, vocab, width = sized((600, 5003, 256), (61, 203, 33))
    given = loss_inputs(count, vocab, width, dtype, bias=True)
    with torch.no_grad():
        rows = given["lm_head"][given["targets"][: count // 2]]
        given["hidden"][: count // 2] = sharpness * rows
        given["weights"].copy_(WEIGHTS[weights](count))
        logits = F.linear(*exactly((given["hidden"], given["lm_head"], given["bias"])))
        chance = logits.softmax(1)[range(count // 2), given["targets"][: count // 2]]
        assert chance.mean() > 0.95 if sharpness > 1 else chance.mean() < 0.05

    def results(function: Any, values: Any) -> list:
        got = function(**values)
        wanted = [values["hidden"], values["weights"]]
        return [got.loss.detach(), got.row_ce, *torch.autograd.grad(got.loss, wanted)]

    truth = results(reference.decisive_cross_entropy, exactly(given))
    plain = results(reference.decisive_cross_entropy, given)
    assert_within_twice(results(ops.decisive_cross_entropy, given), plain, truth, dtype)


def test_nothing_live_and_what_dead_rows_hold() -> None:
    given = loss_inputs(64, 503, 32, torch.bfloat16, 0.5, teacher=True)
    clean = ops.decisive_cross_entropy(**given, kd_weight=0.5)
    want = torch.autograd.grad(clean.loss, given["hidden"])[0]
    dead = given["weights"].detach() == 0
    with torch.no_grad():
        given["hidden"][dead] = float("nan")
        given["teacher_hidden"][dead] = float("inf")
        given["targets"][dead] = 10**6
    for rows in (None, torch.arange(64, device=DEVICE)):
        spoilt = ops.decisive_cross_entropy(**given, kd_weight=0.5, rows=rows, validate=False)
        grad = torch.autograd.grad(spoilt.loss, given["hidden"])[0]
        torch.testing.assert_close(spoilt.loss, clean.loss)
        torch.testing.assert_close(grad, want)
        assert not grad[dead].any()
    with torch.no_grad():
        given["weights"].zero_()
    nothing = ops.decisive_cross_entropy(**given, kd_weight=0.5, rows=rows)
    assert nothing.loss == 0 and not torch.autograd.grad(nothing.loss, given["hidden"])[0].any()


def test_float16_under_a_loss_scale() -> None:
    count = 8192
    given = loss_inputs(count, sized(5000, 64), sized(256, 8), torch.float16)
    scale = torch.tensor(65536.0, device=DEVICE)
    loss = ops.decisive_cross_entropy(**given).loss
    (grad,) = torch.autograd.grad(loss, given["hidden"], scale)
    exact = exactly(given)
    truth = torch.autograd.grad(
        reference.decisive_cross_entropy(**exact).loss, exact["hidden"], scale.double()
    )[0]
    assert grad.isfinite().all() and (grad.double() - truth).norm() <= 2e-3 * truth.norm()


def test_bad_values_are_told_and_assert_nothing_on_the_device() -> None:
    given = loss_inputs(64, 503, 32, torch.bfloat16)
    with torch.no_grad():
        given["targets"][40] = 10**9
        given["weights"][50] = float("nan")
    result = ops.decisive_cross_entropy(**given, validate=False)
    assert result.loss.isnan()
    with pytest.raises(DiveError, match=r"targets\[40\] is 1e\+09, want an index"):
        ops.check(result)
    with pytest.raises(DiveError, match=r"targets\[40\] is 1e\+09, .* 503 rows"):
        ops.decisive_cross_entropy(**given, validate=True)
    with torch.no_grad():
        given["targets"][40] = 7
    with pytest.raises(DiveError, match=r"weights\[50\] is nan"):
        ops.check(ops.decisive_cross_entropy(**given, validate=False))


def test_no_host_sync_with_rows_and_one_without() -> None:
    given = loss_inputs(*sized((600, 5000, 256), (60, 500, 32)), torch.bfloat16, 0.4, teacher=True)
    rows = given["weights"].detach().nonzero()[:, 0]
    rows = torch.cat([rows, rows.new_full((7,), -1)])
    options = {"kd_weight": 0.5, "token_class": torch.zeros_like(given["targets"])}

    def step(listed: Tensor | None) -> None:
        ops.decisive_cross_entropy(**given, rows=listed, **options).loss.backward()

    step(rows)  # compiles
    with no_host_sync():
        step(rows)
        if not REHEARSAL:
            with pytest.raises(RuntimeError, match="synchroniz"):
                step(None)


def test_steering_asks_the_device_nothing() -> None:
    args = steer_inputs(64, 256, 16, torch.bfloat16)
    mask = torch.rand(64, device=DEVICE) > 0.2
    for _ in range(2):  # the first compiles
        with no_host_sync():
            ops.steer(*args, mask=mask, norm_preserving=True).sum().backward()


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("teacher", [False, True])
def test_memory_stays_within_chunk_bytes(teacher: bool, chunks: int) -> None:
    """Of all vocabulary-wide buffers together, so no tensor exceeds a chunk either."""
    vocab, width = sized((64000, 128), (640, 16))
    budget = sized(160 * MIB, MIB) * (1 + teacher)
    layout = loss_chunks.chunk_layout(
        10**6, vocab, torch.float32, DEVICE, budget, teacher, False, False, in_place=not REHEARSAL
    )
    count = layout.chunk_rows * chunks
    products = workspace_of_products(layout.chunk_rows, vocab, width, torch.bfloat16)
    given = loss_inputs(count, vocab, width, torch.bfloat16, teacher=teacher)
    rows = torch.arange(count, device=DEVICE)
    options = {"kd_weight": 0.5} if teacher else {}
    losses: list[Tensor] = []

    def step() -> None:
        result = ops.decisive_cross_entropy(**given, rows=rows, chunk_bytes=budget, **options)
        losses.append(result.loss.detach())

    peak = peak_of(step)
    assert losses[-1].isfinite()
    # beside the logits: the stored gradient, a chunk's gathered states and vectors of N numbers
    assert peak <= budget + 4 * count * width * 2 + 200 * count + MIB + products


@pytest.mark.parametrize("norm_preserving", [False, True])
def test_the_workspace_of_steering_is_bounded(norm_preserving: bool) -> None:
    tokens, width, rank = sized((16384, 4096, 128), (64, 128, 16))
    args = steer_inputs(tokens, width, rank, torch.bfloat16)
    upstream = torch.randn(tokens, width, device=DEVICE).bfloat16()
    out = ops.steer(*args, norm_preserving=norm_preserving)
    backward = lambda: torch.autograd.grad(out, args, upstream, retain_graph=True)  # noqa: E731
    parameters = 4 * (2 * rank * width + rank + width + 1)
    copies = 2 * 2 * rank * width  # of down and up, in the dtype of the stream
    assert peak_of(backward) <= 64 * MIB + tokens * width * 2 + parameters + copies + MIB


def test_capture_and_replay_with_changed_weights_and_rows() -> None:
    given = loss_inputs(256, *sized((5000, 128), (500, 16)), torch.bfloat16, 0.5)
    rows = torch.full((256,), -1, device=DEVICE)

    def fill(weights: Tensor) -> None:
        with torch.no_grad():
            given["weights"].copy_(weights)
        live = weights.nonzero()[:, 0]
        rows.fill_(-1)
        rows[: live.shape[0]] = live

    def step() -> tuple[Tensor, ...]:
        result = ops.decisive_cross_entropy(**given, rows=rows, validate=False)
        grads = torch.autograd.grad(result.loss, [given["hidden"], given["weights"]])
        return result.loss.detach(), result.row_ce, *grads

    fill(given["weights"].detach().clone())
    outputs, replay = captured(step)
    for share in (0.9, 0.1, 0.0):
        fill(torch.rand(256, device=DEVICE) * (torch.rand(256, device=DEVICE) < share))
        replay()
        for mine, want in zip(outputs, step(), strict=True):
            assert torch.equal(mine, want)


@pytest.mark.parametrize("norm_preserving", [False, True])
def test_capture_of_steer(norm_preserving: bool) -> None:
    args = steer_inputs(256, sized(1024, 64), 16, torch.bfloat16)
    upstream = torch.randn(args[0].shape, device=DEVICE).bfloat16()
    options = {"norm_preserving": norm_preserving}
    outputs, replay = captured(lambda: steer_results(ops.steer, args, upstream, **options))
    with torch.no_grad():
        args[0].normal_()
    replay()
    for got, want in zip(outputs, steer_results(ops.steer, args, upstream, **options), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("listed", [True, False])
def test_compiled_whole(listed: bool) -> None:
    args = steer_inputs(64, 256, 3, torch.bfloat16)
    given = loss_inputs(64, 1003, 256, torch.bfloat16, 0.5)
    rows = given["weights"].detach().nonzero()[:, 0] if listed else None

    def both(*tensors: Tensor) -> Tensor:
        steered = ops.steer(*tensors)
        values = {**given, "hidden": steered}
        return ops.decisive_cross_entropy(**values, rows=rows).loss

    compiled = torch.compile(both, fullgraph=True, backend=sized("inductor", "aot_eager"))
    loss, want = compiled(*args), both(*args)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(torch.autograd.grad(loss, args), torch.autograd.grad(want, args))


def test_tensors_on_another_device_than_the_current_one() -> None:
    if not REHEARSAL and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = DEVICE if REHEARSAL else torch.device("cuda", 1)
    args = [x.detach().to(other).requires_grad_() for x in steer_inputs(9, 24, 3, torch.bfloat16)]
    ops.steer(*args).sum().backward()
    given = loss_inputs(9, 37, 24, torch.bfloat16, teacher=True)
    moved = {name: x.detach().to(other) for name, x in given.items()}
    moved["hidden"].requires_grad_()
    want = ops.decisive_cross_entropy(**given, kd_weight=0.5).loss
    loss = ops.decisive_cross_entropy(**moved, kd_weight=0.5).loss
    loss.backward()
    torch.testing.assert_close(loss.to(DEVICE), want)


def test_float64_runs_too() -> None:
    args = exactly(steer_inputs(9, 24, 3, torch.float32))
    torch.testing.assert_close(ops.steer(*args), reference.steer(*args))
    given = exactly(loss_inputs(9, 37, 24, torch.float32))
    want = reference.decisive_cross_entropy(**given).loss
    torch.testing.assert_close(ops.decisive_cross_entropy(**given).loss, want)


def test_offsets_beyond_two_gigabytes(alone: None) -> None:
    """A chunk of more elements than 32 bits count; about 12 GB."""
    if not REHEARSAL and torch.cuda.get_device_properties(DEVICE).total_memory < 30 * 2**30:
        pytest.skip("needs 30 GB")
    vocab = sized(128256, 1003)
    count = sized(2**31 // vocab + 512, 512)
    given = loss_inputs(count, vocab, sized(64, 8), torch.bfloat16)
    rows = torch.arange(count, device=DEVICE)
    big = ops.decisive_cross_entropy(**given, rows=rows, chunk_bytes=2**36)
    small = ops.decisive_cross_entropy(**given, rows=rows, chunk_bytes=sized(None, 1))
    # cuBLAS may sum in another order where there are other rows
    torch.testing.assert_close(big.row_ce, small.row_ce, rtol=1e-5, atol=1e-5)
    beyond = sized(2**31 // vocab, count // 2)
    got, want = (
        torch.autograd.grad(r.loss, given["hidden"])[0][beyond:].double() for r in (big, small)
    )
    assert len(want) > 200 and (got - want).norm() <= 1e-2 * want.norm() > 0


def test_steering_beyond_two_gigabytes(alone: None) -> None:
    """More elements of the stream than 32 bits count; about 18 GB."""
    if not REHEARSAL and torch.cuda.get_device_properties(DEVICE).total_memory < 30 * 2**30:
        pytest.skip("needs 30 GB")
    width = sized(8192, 64)
    tokens = sized(2**31 // width + 64, 96)
    args = steer_inputs(tokens, width, 16, torch.bfloat16)
    upstream = torch.randn(64, width, device=DEVICE).bfloat16()
    with torch.no_grad():
        args[0][:-64] = 0
    whole = torch.zeros_like(args[0])
    whole[-64:] = upstream
    got = steer_results(ops.steer, args, whole)
    tail = [args[0].detach()[-64:].clone().requires_grad_(), *args[1:]]
    want = steer_results(ops.steer, tail, upstream)
    torch.testing.assert_close(got[0][-64:], want[0])
    torch.testing.assert_close(got[1][-64:], want[1])
    torch.testing.assert_close(got[2:], want[2:], rtol=1e-3, atol=1e-3)


# --- parity with others ------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_of_one_are_torch_cross_entropy(reduction: str) -> None:
    given = loss_inputs(*sized((512, 5003, 128), (64, 203, 16)), torch.float32)
    given["weights"] = torch.ones_like(given["weights"])
    result = ops.decisive_cross_entropy(**given, reduction=reduction)
    hidden, head, targets = given["hidden"], given["lm_head"], given["targets"]
    wanted = [F.cross_entropy(hidden @ head.T, targets, reduction=reduction)]
    if hasattr(F, "linear_cross_entropy"):
        wanted.append(F.linear_cross_entropy(hidden, head, targets, reduction=reduction))
    grad = torch.autograd.grad(result.loss.sum(), hidden)[0]
    for want in wanted:
        torch.testing.assert_close(result.loss, want)
        theirs = torch.autograd.grad(want.sum(), hidden)[0]
        torch.testing.assert_close(grad, theirs, rtol=1e-4, atol=1e-6)


def test_order_of_rows_and_chunks_change_only_rounding() -> None:
    count, vocab, width = sized((1024, 5003, 128), (128, 203, 16))
    given = loss_inputs(count, vocab, width, torch.float32, teacher=True)
    options: dict[str, Any] = {"kd_weight": 0.5, "softcap": 9.0}

    def results(**more: Any) -> list[Tensor]:
        result = ops.decisive_cross_entropy(**given, **options, **more)
        return [result.loss.detach(), torch.autograd.grad(result.loss, given["hidden"])[0]]

    want = results()
    torch.testing.assert_close(results(chunk_bytes=1), want, rtol=1e-5, atol=1e-7)
    order = torch.randperm(count, device=DEVICE)
    torch.testing.assert_close(results(rows=order), want, rtol=1e-5, atol=1e-7)


def test_rank_0_norm_preserving_is_live_and_identity_is_linear() -> None:
    h, *params = steer_inputs(129, sized(1024, 64), 0, torch.float32)
    shifted = h + params[4] * params[3]
    want = shifted / shifted.norm(dim=-1, keepdim=True) * h.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(ops.steer(h, *params, norm_preserving=True), want)
    h, down, bias, up, static, scale = steer_inputs(129, sized(1024, 64), 8, torch.float32)
    u = F.rms_norm(h, (h.shape[1],), eps=1e-6)
    edit = (u.double() @ down.T.double() + bias) @ up.T.double() + static
    got = ops.steer(h, down, bias, up, static, scale, activation="identity")
    torch.testing.assert_close(got, (h + scale * edit).float())
