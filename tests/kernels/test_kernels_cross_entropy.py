"""The Triton source of the cross entropy under Triton's interpreter, through `dive.ops`.

Triton reads TRITON_INTERPRET when it is imported, so test_kernels_interpreted.py runs this
file in its own process.
"""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by test_kernels_interpreted.py", allow_module_level=True)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loss_normalizers import RIGHT, WRONG, check_right, check_wrong
from loss_problems import BAD_VALUES, check_bad_value
from torch import Tensor

from dive import ops, reference
from dive.kernels import cross_entropy, schedule
from dive.kernels import cross_entropy_rows as kernel
from dive.kernels import launch_table as table
from dive.ops import triton_path
from dive.ops.chunks import ChunkLayout

triton_path.install("CPU")
HALVES = (torch.float16, torch.bfloat16)
N, V, D = 5, 37, 24
KD = {"kd_weight": 0.7, "temperature": 2.0}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def problem(
    count: int = N,
    vocab: int = V,
    dtype: torch.dtype = torch.float32,
    weights: Tensor | None = None,
    sharpness: float = 1.0,
    teacher: bool = False,
    bias: bool = False,
) -> dict[str, Any]:
    """Returns a peaked distribution for a large sharpness, a flat one for a small."""
    given: dict[str, Any] = {
        "hidden": (sharpness * torch.randn(count, D)).to(dtype).requires_grad_(),
        "lm_head": torch.randn(vocab, D).to(dtype),
        "targets": torch.randint(0, vocab, (count,)),
        "weights": torch.rand(count) if weights is None else weights,
    }
    given["weights"] = given["weights"].float().requires_grad_()
    if teacher:
        given["teacher_hidden"] = torch.randn(count, D).to(dtype)
    if bias:
        given["bias"] = torch.randn(vocab).to(dtype)
    return given


def run(function: Any, given: dict[str, Any], upstream: Tensor | None, **options: Any) -> Any:
    result = function(**given, **options)
    if upstream is None:
        upstream = torch.ones_like(result.loss)
    grads = torch.autograd.grad(
        result.loss, [given["hidden"], given["weights"]], upstream.to(result.loss.dtype)
    )
    return result, grads


def assert_same(given: dict[str, Any], upstream: Tensor | None = None, **options: Any) -> None:
    """Against float64 on the same values: sums are float32, only the operands are narrow."""
    exact = {
        name: value.detach().double().requires_grad_(value.requires_grad)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in given.items()
    }
    exact_options = {k: v.double() if k.endswith("normalizer") else v for k, v in options.items()}
    mine, grads = run(ops.decisive_cross_entropy, given, upstream, **options)
    want, truth = run(reference.decisive_cross_entropy, exact, upstream, **exact_options)
    for name, got, right in zip(want._fields, mine, want, strict=True):
        if name == "status":
            assert not got.any()
        elif right is None:
            assert got is None
        elif right.dtype == torch.int64:
            assert torch.equal(got, right), name
        else:
            torch.testing.assert_close(got.double(), right, rtol=2e-5, atol=2e-5, msg=name)
    eps = torch.finfo(given["hidden"].dtype).eps
    hidden, weights = truth
    error = (grads[0].double() - hidden).norm()
    # the gradient is rounded when it is stored in the logits, and again when it is returned
    assert error <= (2 * eps + 1e-5) * hidden.norm() + 1e-12
    torch.testing.assert_close(grads[1].double(), weights, rtol=2e-5, atol=2e-5)
    assert not grads[0][given["weights"] == 0].any() or "kd_weights" in options


WEIGHTS = {
    "one": torch.ones(N),
    "random": torch.rand(N) + 0.1,
    "mostly zero": torch.tensor([0.0, 0, 0, 3, 0]),
    "one huge": torch.tensor([1.0, 0.5, 1e6, 0, 2]),
    "all zero": torch.zeros(N),
}


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_and_reductions(weights: str, reduction: str, teacher: bool) -> None:
    given = problem(weights=WEIGHTS[weights], teacher=teacher)
    if weights == "one huge" and reduction != "mean":
        given["weights"] = (WEIGHTS[weights] / 1e6).requires_grad_()
    # a different upstream gradient for every row
    upstream = torch.randn(N) if reduction == "none" else torch.tensor(-1.7)
    options = KD if teacher else {}
    assert_same(given, upstream, reduction=reduction, **options)


@pytest.mark.parametrize("sharpness", [1e-3, 1.0, 8.0])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("temperature", [None, 1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
def test_peaked_and_flat(
    bias: bool, temperature: float | None, softcap: float | None, sharpness: float
) -> None:
    given = problem(sharpness=sharpness, teacher=temperature is not None, bias=bias)
    # a cap far below the logits makes ties in float32 that float64 resolves
    options = {"softcap": softcap and softcap * max(1.0, sharpness)}
    if temperature is not None:
        options |= {"kd_weight": 0.5, "temperature": temperature}
    assert_same(given, **options, token_class=torch.tensor([0, 1, 2, 1, 7]))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("vocab", [V, 1100])
@pytest.mark.parametrize("teacher", [False, True])
def test_narrow_inputs(teacher: bool, vocab: int, dtype: torch.dtype) -> None:
    """Logits are float32; the gradient is in the upper half of their buffer."""
    given = problem(vocab=vocab, dtype=dtype, teacher=teacher, bias=True)
    assert_same(given, softcap=20.0, **(KD if teacher else {}))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_rows_longer_than_several_blocks(dtype: torch.dtype) -> None:
    assert_same(problem(3, 8200, dtype, teacher=True), **KD)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_narrow_gradient_never_lands_on_logits_still_to_be_read(blocks: int) -> None:
    """The order for which one buffer suffices, as arithmetic: bytes of a row, any block size."""
    for vocab in (37, 64, 1000):
        stride, block = kernel.row_stride(vocab), -(-vocab // blocks)
        for k in reversed(range(blocks)):
            written = 2 * stride + 2 * k * block
            still_to_read = 4 * k * block
            assert written >= still_to_read
    buffer = torch.zeros(2, kernel.row_stride(37))
    view = kernel.gradient_view(buffer, 37, torch.bfloat16)
    view.fill_(1)
    assert view.shape == (2, 37) and not buffer[:, :32].any() and buffer[:, 32:50].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_lies_behind_a_row_of_logits_takes_no_part(dtype: torch.dtype) -> None:
    rows, stride = 3, kernel.row_stride(V)
    assert stride > V
    logits = torch.full((rows, stride), float("nan"))
    logits[:, :V] = torch.randn(rows, V)
    z, target = logits[:, :V].clone(), torch.tensor([0, V - 1, 5])
    found = torch.empty(rows), torch.empty(rows), torch.empty(rows).long(), torch.empty(rows)
    one, yes = torch.ones(rows), torch.ones(rows, dtype=torch.uint8)
    gradient = kernel.gradient_view(logits, V, dtype)
    kernel.turn_into_gradient(
        logits, None, None, gradient, target, yes, one, one, yes, found, V, 9.0, 1.0
    )
    capped = (9 * torch.tanh(z / 9)).requires_grad_()
    torch.testing.assert_close(found[0], capped.logsumexp(1))
    assert torch.equal(found[2], z.argmax(1))
    loss = torch.nn.functional.cross_entropy(capped, target, reduction="sum")
    want = torch.autograd.grad(loss, capped)[0] * (1 - torch.tanh(z / 9) ** 2)
    torch.testing.assert_close(gradient.float(), want, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("teacher", [False, True])
def test_dead_rows_may_hold_anything(teacher: bool) -> None:
    weights = torch.tensor([1.0, 0, 2, 0, 0.5])
    given = problem(weights=weights, teacher=teacher)
    options = dict(KD) if teacher else {}
    rows = torch.tensor([4, -1, 0, 3, 2, -1])  # row 3 is listed and has no weight
    clean = run(ops.decisive_cross_entropy, given, None, **options)
    with torch.no_grad():
        dead = given["weights"] == 0
        given["hidden"][dead] = float("nan")
        given["targets"][dead] = 10**6
        if teacher:
            given["teacher_hidden"][dead] = float("inf")
    for listed in (None, rows):
        result, grads = run(ops.decisive_cross_entropy, given, None, rows=listed, **options)
        for got, want in zip(result, clean[0], strict=True):
            if want is not None:
                torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(grads, clean[1], rtol=1e-5, atol=1e-6)
        assert not grads[0][dead].any() and result.argmax[dead].eq(-1).all()


def test_padding_points_at_no_row_even_where_row_0_is_spoilt() -> None:
    given = problem(weights=torch.tensor([0.0, 1, 1, 1, 1]))
    with torch.no_grad():
        given["hidden"][0] = float("nan")
    result, (grad, _) = run(
        ops.decisive_cross_entropy, given, None, rows=torch.tensor([-1, 1, 2, 3, 4])
    )
    assert result.loss.isfinite() and grad.isfinite().all() and not grad[0].any()


def test_distillation_weights_and_normalisers() -> None:
    given = problem(weights=torch.tensor([1.0, 0, 2, 0, 0]), teacher=True)
    given["kd_weights"] = torch.tensor([0.0, 3, 1, 0, 0])
    with torch.no_grad():
        given["teacher_hidden"][0] = float("nan")  # in a row that is not distilled
    clean = {**given, "teacher_hidden": given["teacher_hidden"].nan_to_num(0.0)}
    options = {"normalizer": torch.tensor(11.0), "kd_normalizer": torch.tensor(5.0), **KD}
    mine, grads = run(ops.decisive_cross_entropy, given, None, **options)
    want, truth = run(reference.decisive_cross_entropy, clean, None, **options)
    torch.testing.assert_close(mine.loss, want.loss)
    torch.testing.assert_close(mine.row_kl, want.row_kl)
    torch.testing.assert_close(grads, truth)


def test_chunks_and_the_order_of_rows_change_only_rounding() -> None:
    given = problem(70, teacher=True)
    whole, grads = run(ops.decisive_cross_entropy, given, None, **KD)
    small, parts = run(ops.decisive_cross_entropy, given, None, chunk_bytes=1, **KD)
    torch.testing.assert_close(small.loss, whole.loss)
    torch.testing.assert_close(parts, grads)
    order = torch.randperm(70)
    mixed, turned = run(ops.decisive_cross_entropy, given, None, rows=order, **KD)
    torch.testing.assert_close(mixed.loss, whole.loss)
    torch.testing.assert_close(turned, grads)


class Late:
    """A stream that begins no step before something waits for it."""

    def __init__(self) -> None:
        self.held: list[tuple[int, Any]] = []
        self.most = 0

    def run(self, chunk: int, step: Any) -> None:
        self.held.append((chunk, step))
        self.most = max(self.most, len(self.held))

    def wait(self, chunk: int) -> None:
        while self.held and self.held[0][0] <= chunk:
            number, step = self.held.pop(0)
            step(number)

    def close(self) -> None:
        assert not self.held, "each is waited for"


@pytest.mark.parametrize(
    ("late", "teacher", "dtype"),
    [
        (False, True, torch.bfloat16),
        (True, False, torch.float32),
        (True, True, torch.bfloat16),
    ],
)
def test_row_passes_beside_products_change_no_bit(
    late: bool, teacher: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the other stream is as fast as possible or as slow. 40 rows: the last chunk is
    short; both ways have chunks of the same size."""
    monkeypatch.setattr(triton_path, "chunk_layout", lambda *_, **__: ChunkLayout(16, 1, 0))
    given = problem(40, dtype=dtype, teacher=teacher, weights=torch.rand(40) + 0.1)
    options = dict(KD) if teacher else {}
    want, grads = run(ops.decisive_cross_entropy, given, None, **options)
    row = {
        **table._DEFAULTS["cross_entropy_rows"](0, dtype == torch.float32, 0, V),
        "buffers": 2,
    }
    name = str(dtype).removeprefix("torch.")
    monkeypatch.setitem(table.TUNED, ("cross_entropy_rows", 0, name, 0, 1024), {**row, "STAGES": 3})
    table._configured.cache_clear()
    where = Late() if late else schedule.SameStream()
    seen: list[int] = []
    monkeypatch.setattr(
        cross_entropy, "row_pass_stream", lambda _, buffers: seen.append(buffers) or where
    )
    got, others = run(ops.decisive_cross_entropy, given, None, **options)
    with torch.no_grad():
        quiet = ops.decisive_cross_entropy(**given, **options)
    assert seen == [2, 2] and (not late or where.most == 2)
    for one, other in zip(got, want, strict=True):
        assert one is None or torch.equal(one, other)
    assert torch.equal(quiet.loss, want.loss)
    for one, other in zip(others, grads, strict=True):
        assert torch.equal(one, other)
    monkeypatch.undo()
    table._configured.cache_clear()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_more_rows_than_a_block(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after the chunks there is one program that loops over the rows."""
    for name in ("cross_entropy_prepare", "cross_entropy_finish"):
        small = lambda *_: {"BLOCK": 2, "num_warps": 1}  # noqa: E731
        monkeypatch.setitem(table._DEFAULTS, name, small)
    table._configured.cache_clear()
    given = problem(7, weights=torch.tensor([1.0, 0, 2, 0.5, 0, 0, 3]), teacher=True)
    kd_weights = torch.tensor([0.0, 1, 1, 0, 0, 2, 1])
    kinds = torch.tensor([0, 1, 2, 1, 1, 0, 1], dtype=torch.int8)
    rows = torch.tensor([6, -1, 0, 5, 2, 4, 3, 1, -1])
    upstream = torch.rand(7) if reduction == "none" else None
    options = {"token_class": kinds, "rows": rows, "reduction": reduction, **KD}
    options["kd_weights"] = kd_weights
    assert_same(given, upstream, **options)
    given["weights"].data[4] = -2
    result = ops.decisive_cross_entropy(**given, **options, validate=False)
    assert result.loss.isnan().all() and result.status.tolist() == [2, 4, -2]
    table._configured.cache_clear()


@pytest.mark.parametrize("vocab", [37, 2050])
def test_the_most_likely_token_is_the_first_of_equals(vocab: int) -> None:
    given = problem(2, vocab)
    with torch.no_grad():
        given["lm_head"][:] = 0
        given["lm_head"][[vocab - 3, 7, vocab // 2]] = given["hidden"].detach().sum(0)
    result = ops.decisive_cross_entropy(**given)
    z = given["hidden"].detach() @ given["lm_head"].T
    assert torch.equal(result.argmax, torch.where(z[:, 7] > 0, 7, 0))


def test_float16_under_a_loss_scale() -> None:
    given = problem(64, 1000, torch.float16, weights=torch.ones(64))
    scale = torch.tensor(65536.0)
    _, (grad, _) = run(ops.decisive_cross_entropy, given, scale)
    exact = {k: v.detach().double() if v.is_floating_point() else v for k, v in given.items()}
    exact["hidden"].requires_grad_(), exact["weights"].requires_grad_()
    _, (truth, _) = run(reference.decisive_cross_entropy, exact, scale)
    assert grad.isfinite().all()
    assert (grad.double() - truth).norm() <= 2e-3 * truth.norm()


def test_what_is_stored_is_never_changed_and_no_grad_stores_nothing() -> None:
    given = problem()
    loss = ops.decisive_cross_entropy(**given).loss
    first, second = (
        torch.autograd.grad(loss, given["hidden"], retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(first, second) and first.any()
    with torch.no_grad():
        quiet = ops.decisive_cross_entropy(**given)
    torch.testing.assert_close(quiet.loss, loss.detach())


def test_empty_batches() -> None:
    given = problem(0)
    result, grads = run(ops.decisive_cross_entropy, given, None)
    assert result.loss == 0 and grads[0].shape == (0, D)
    padded = ops.decisive_cross_entropy(**problem(), rows=torch.tensor([-1, -1]), validate=False)
    assert padded.loss == 0


def test_what_runs_under_a_sanitizer_launches_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpretedFunction

    from tools import compile_kernels as aot

    monkeypatch.setenv("DIVE_REHEARSE_GPU", "1")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "gpu")
    import test_gpu_operators
    import test_gpu_steer_grouped

    from dive.kernels import steer_grouped

    launched = set()
    run_kernel = InterpretedFunction.run

    def run_noted(self: Any, *args: Any, **options: Any) -> Any:
        launched.add(self.fn.__name__)
        return run_kernel(self, *args, **options)

    monkeypatch.setattr(InterpretedFunction, "run", run_noted)
    test_gpu_operators.test_every_kernel_of_the_operators()
    for few in (True, False):  # on a GPU by the number of tokens
        monkeypatch.setattr(steer_grouped, "has_few_tokens", lambda *_, few=few: few)
        test_gpu_steer_grouped.test_every_kernel_of_grouped_steering(torch.bfloat16)
    assert launched == {one.fn.__name__ for one in aot._KERNELS.values()}


def test_operators_hold_their_contracts() -> None:
    given = problem(teacher=True)
    arguments = (
        given["hidden"], given["lm_head"], given["targets"], given["weights"], torch.arange(N),
        None, given["teacher_hidden"], None, None, None, None, None, 1.0, 0.5, 2.0, "mean",
        2**20, False, True,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.dive.decisive_cross_entropy.default, arguments)
    assert ops.implementation("decisive_cross_entropy", "cpu") == "triton"


@pytest.mark.parametrize("name", WRONG)
def test_sums_without_a_reciprocal_are_an_error(name: str) -> None:
    check_wrong(name, ops.decisive_cross_entropy)


@pytest.mark.parametrize("name", RIGHT)
def test_large_and_small_sums_are_numbers(name: str) -> None:
    check_right(name, ops.decisive_cross_entropy)


@pytest.mark.parametrize(("spoil", "message"), BAD_VALUES)
def test_bad_values(spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    check_bad_value(spoil, message)
