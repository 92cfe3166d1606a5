"""`dive.ops.decisive_cross_entropy` against the reference, PyTorch's losses and the memory rule."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_problems import BAD_VALUES, F64, D, N, V, check_bad_value, problem, teacher_of
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dive import ops, reference
from dive.errors import DiveError
from dive.ops import chunks, cross_entropy, cross_entropy_torch
from dive.ops.loss_arguments import LossArguments

Loss = Callable[..., reference.DecisiveLoss]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def run(
    loss: Loss, p: dict[str, Any], upstream: Tensor | None = None, **options: Any
) -> tuple[reference.DecisiveLoss, Tensor, Tensor]:
    hidden = p["hidden"].detach().clone().requires_grad_()
    weights = p["weights"].detach().clone().requires_grad_()
    out = loss(**{**p, "hidden": hidden, "weights": weights}, **options)
    return out, *torch.autograd.grad(out.loss, [hidden, weights], upstream)


def assert_same(p: dict[str, Any], upstream: Tensor | None = None, **options: Any) -> None:
    """Every output and both gradients equal the reference's."""
    got, *grads = run(ops.decisive_cross_entropy, p, upstream, **options)
    want, *expected = run(reference.decisive_cross_entropy, p, upstream, **options)
    for name, mine, theirs in zip(got._fields[:-1], got, want, strict=False):
        torch.testing.assert_close(mine, theirs, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(grads, expected)


OBJECTIVES = list(
    product(("mean", "sum", "none"), (None, 2.0), (1.0, 2.5), (False, True), (False, True))
)


@pytest.mark.parametrize(("reduction", "softcap", "temperature", "teacher", "given"), OBJECTIVES)
def test_every_objective_with_dead_rows(
    reduction: str, softcap: float | None, temperature: float, teacher: bool, given: bool
) -> None:
    p = problem()
    p["weights"][2] = p["weights"][5] = 0
    p["targets"][2] = -100
    with torch.no_grad():
        p["hidden"][2] = float("nan")
    options: dict[str, Any] = {
        "reduction": reduction,
        "softcap": softcap,
        "temperature": temperature,
        "token_class": torch.arange(N) % 4 - 1,
        "bias": torch.randn(V, dtype=F64) if given else None,
        "chunk_bytes": 4 * V * 8,
    }
    if given:
        options["normalizer"] = torch.tensor(5.0, dtype=F64)
        options["kd_normalizer"] = torch.tensor(3.0)
    if teacher:
        options |= {"teacher_hidden": teacher_of(p), "kd_weight": 0.7, "ce_weight": 0.4}
        if given:  # rows with only one of the two terms
            options["kd_weights"] = torch.rand(N)
            options["kd_weights"][:3] = torch.tensor([0.0, 0.0, 0.0])
            options["kd_weights"][5] = 2.0
            options["teacher_hidden"][0] = float("nan")
    uneven = torch.linspace(0.5, 2, N, dtype=F64) if reduction == "none" else None
    assert_same(p, uneven, **options)


def test_distillation_alone() -> None:
    p = problem()
    p["weights"][3] = 0
    assert_same(p, teacher_hidden=teacher_of(p), ce_weight=0.0, kd_weight=1.0)
    # the target of a row that is only distilled is ignored
    p["weights"][:] = 0
    p["targets"][1] = -100
    assert_same(p, teacher_hidden=teacher_of(p), kd_weight=1.0, kd_weights=torch.ones(N))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("teacher", [False, True])
def test_backward_is_the_derivative(reduction: str, teacher: bool) -> None:
    p = problem()
    options: dict[str, Any] = {"softcap": 3.0, "temperature": 2.0, "reduction": reduction}
    if teacher:
        options |= {"teacher_hidden": teacher_of(p), "kd_weight": 0.5}

    def loss(hidden: Tensor, weights: Tensor) -> Tensor:
        return ops.decisive_cross_entropy(
            hidden, p["lm_head"], p["targets"], weights, **options
        ).loss

    assert gradcheck(loss, [p["hidden"], p["weights"].requires_grad_()])


WEIGHTS = {
    "one": lambda n: torch.ones(n),
    "random": torch.rand,
    "sparse": lambda n: torch.rand(n) * (torch.rand(n) < 0.1),
    "huge": lambda n: torch.cat([torch.tensor([1e6]), torch.rand(n - 1)]),
}


@pytest.mark.parametrize("kd_weight", [0.0, 0.5])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("peak", [1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_within_twice_that_of_plain_pytorch(
    dtype: torch.dtype, peak: float, weights: str, kd_weight: float
) -> None:
    p = problem(61, 203, 33, dtype, peak=peak / 33**0.5)
    p["weights"] = WEIGHTS[weights](61)
    p["weights"][1] = 1.0
    teacher, bias = teacher_of(p), torch.randn(203).to(dtype)
    exact = {k: v.detach().double() if v.is_floating_point() else v for k, v in p.items()}
    options = {"kd_weight": kd_weight, "softcap": 20.0}
    extra = {"teacher_hidden": teacher, "bias": bias}
    exact_extra = {key: value.double() for key, value in extra.items()}
    truth, *true_grads = run(reference.decisive_cross_entropy, exact, **options, **exact_extra)

    def errors(loss: Loss, **given: Any) -> list[float]:
        got, *grads = run(loss, p, **given)
        assert grads[0].dtype == dtype and got.loss.dtype == torch.float32
        pairs = [(got.loss, truth.loss), (got.row_ce, truth.row_ce), (got.lse, truth.lse)]
        pairs += zip(grads, true_grads, strict=True)
        return [((g.double() - t).norm() / t.norm()).item() for g, t in pairs]

    mine = errors(ops.decisive_cross_entropy, **options, **extra)
    plain = errors(reference.decisive_cross_entropy, **options, **extra)
    for got, floor in zip(mine, plain, strict=True):
        # a single sum can round to the truth by chance: one unit of float32 is always allowed
        assert got <= 2 * floor + torch.finfo(torch.float32).eps


def test_float16_under_a_loss_scale() -> None:
    """Without the common normaliser, the stored gradient keeps its bits at 8,192 rows."""
    p = problem(8192, 64, 8, torch.float16)
    exact = {k: v.detach().double() if v.is_floating_point() else v for k, v in p.items()}
    for loss_scale in (1.0, 65536.0):
        _, grad, _ = run(ops.decisive_cross_entropy, p, torch.tensor(loss_scale))
        _, true, _ = run(reference.decisive_cross_entropy, exact, torch.tensor(loss_scale).double())
        assert grad.isfinite().all()
        if loss_scale > 1:
            assert (grad.double() - true).norm() <= 2e-3 * true.norm()
            assert (grad == 0).float().mean() <= 0.01


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_of_one_are_torch_cross_entropy(reduction: str) -> None:
    p = problem(dtype=torch.float32)
    p["weights"] = torch.ones(N)
    got, grad, _ = run(
        ops.decisive_cross_entropy,
        p,
        torch.ones(N) if reduction == "none" else None,
        reduction=reduction,
    )
    hidden = p["hidden"]
    wanted = [F.cross_entropy(hidden @ p["lm_head"].T, p["targets"], reduction=reduction)]
    if hasattr(F, "linear_cross_entropy"):
        wanted.append(
            F.linear_cross_entropy(hidden, p["lm_head"], p["targets"], reduction=reduction)
        )
    for want in wanted:
        torch.testing.assert_close(got.loss, want)
        torch.testing.assert_close(grad, torch.autograd.grad(want.sum(), hidden)[0])


def test_given_rows_padded() -> None:
    p = problem()
    p["weights"][[1, 4]] = 0
    with torch.no_grad():
        p["hidden"][[1, 4]] = float("nan")
    # not in order, with a dead row and with padding between
    rows = torch.tensor([8, 0, -1, 2, 3, 4, -1, 5, 6, 7, -1])
    options = {"teacher_hidden": teacher_of(p), "kd_weight": 1.0}
    assert_same(p, rows=rows, **options)
    plain, listed = (run(ops.decisive_cross_entropy, p, rows=r, **options) for r in (None, rows))
    torch.testing.assert_close(plain[0][:6], listed[0][:6])
    torch.testing.assert_close(plain[1:], listed[1:])
    # rows that are not listed are not live
    assert_same(p, rows=torch.tensor([0, 3, -1]), validate=False)


def test_nothing_live_and_empty_batches() -> None:
    p = problem()
    with torch.no_grad():
        p["hidden"][:] = float("nan")
    p["weights"][:] = 0
    for reduction in ("mean", "sum", "none"):
        uneven = torch.ones(N, dtype=F64) if reduction == "none" else None
        options: dict[str, Any] = {"reduction": reduction, "token_class": torch.zeros(N).long()}
        out, *grads = run(ops.decisive_cross_entropy, p, uneven, **options)
        assert (out.loss == 0).all() and all((g == 0).all() for g in grads)
        assert out.class_count is not None and out.class_count.tolist() == [0, 0, 0]
        assert_same(p, uneven, **options)
    out, *grads = run(ops.decisive_cross_entropy, problem(0), rows=torch.tensor([-1, -1]))
    assert out.loss == 0 and grads[0].shape == (0, D)
    p = problem()
    zero = torch.zeros((), dtype=F64)
    out, *grads = run(ops.decisive_cross_entropy, p, normalizer=zero)
    assert out.loss == 0 and (grads[0] == 0).all() and (out.row_ce > 0).all()


def test_row_order_and_chunks_change_nothing_but_rounding() -> None:
    p = problem(70, dtype=torch.float32)
    options = {"teacher_hidden": teacher_of(p), "kd_weight": 1.0, "softcap": 5.0}
    want, grad, slope = run(ops.decisive_cross_entropy, p, **options)
    small, small_grad, _ = run(ops.decisive_cross_entropy, p, chunk_bytes=1, **options)
    torch.testing.assert_close(small.loss, want.loss)
    torch.testing.assert_close(small_grad, grad)
    order = torch.randperm(70)
    moved = {k: v if k == "lm_head" else v.detach()[order] for k, v in p.items()}
    options["teacher_hidden"] = options["teacher_hidden"][order]
    got, moved_grad, moved_slope = run(ops.decisive_cross_entropy, moved, **options)
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close([moved_grad, moved_slope], [grad[order], slope[order]])


class Largest(TorchDispatchMode):
    """Records the sizes of storages that operations create, in elements and in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("teacher", [False, True])
def test_no_tensor_is_larger_than_a_chunk(dtype: torch.dtype, teacher: bool) -> None:
    rows, vocab, width = 256, 2048, 8
    p = problem(rows, vocab, width, dtype)
    options: dict[str, Any] = {"temperature": 2.0, "softcap": 9.0}
    if teacher:
        options |= {"teacher_hidden": teacher_of(p), "kd_weight": 1.0}
    budget = 1 << 20
    layout = chunks.chunk_layout(
        rows, vocab, dtype, torch.device("cpu"), budget, teacher, softcap=True, tempered=True
    )
    assert rows >= 4 * layout.chunk_rows  # otherwise the test would be empty
    # called below the dispatcher, where every inner operation is visible
    with Largest() as seen:
        results = cross_entropy_torch.forward(
            LossArguments(
                hidden=p["hidden"].detach(),
                lm_head=p["lm_head"],
                targets=p["targets"],
                weights=p["weights"],
                rows=torch.arange(rows),
                bias=None,
                teacher_hidden=options.get("teacher_hidden"),
                kd_weights=None,
                normalizer=None,
                kd_normalizer=None,
                token_class=None,
                softcap=9.0,
                ce_weight=1.0,
                kd_weight=1.0 if teacher else 0.0,
                temperature=2.0,
                reduction="mean",
                chunk_bytes=budget,
                validate=True,
                compute_grad=True,
            )
        )
    assert results[0].isfinite()
    assert seen.elements == layout.chunk_rows * vocab
    assert layout.chunk_rows == 32 or seen.bytes <= budget


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("distils", [False, True])
def test_a_plan_keeps_its_budget(dtype: torch.dtype, distils: bool) -> None:
    cpu, mib = torch.device("cpu"), 2**20
    for live, vocab in product((1, 100, 5000), (17, 32000, 128256)):
        layout = chunks.chunk_layout(live, vocab, dtype, cpu, 32 * mib, distils, True, True)
        used = layout.chunk_rows * vocab * dtype.itemsize * (1 + distils)
        used += layout.scratch * layout.tile_rows * vocab * 4
        assert used <= 32 * mib or layout.chunk_rows <= 32
        assert 1 <= layout.chunk_rows <= live


@pytest.mark.parametrize("vocab", [1, 37, 64, 192, 1000])
def test_the_most_likely_token_is_the_first_of_equals(vocab: int) -> None:
    z = torch.randint(5, (50, vocab)).float()
    peak, index = cross_entropy_torch._largest(z)
    assert torch.equal(peak[:, 0], z.amax(1))
    assert torch.equal(index[:, 0], z.argmax(1))
    z[0, vocab // 2] = float("nan")
    assert (
        cross_entropy_torch._largest(z)[0][0].isnan()
        and cross_entropy_torch._largest(z)[1][0] == vocab // 2
    )


def test_graph_kept_and_used_again() -> None:
    p = problem()
    out = ops.decisive_cross_entropy(**p)
    first = torch.autograd.grad(out.loss, p["hidden"], torch.tensor(2.0), retain_graph=True)[0]
    second = torch.autograd.grad(out.loss, p["hidden"], torch.tensor(1.0), retain_graph=True)[0]
    torch.testing.assert_close(first, 2 * second)
    (grad,) = torch.autograd.grad(out.loss, p["hidden"], create_graph=True)
    assert torch.equal(grad, second)
    with pytest.raises(DiveError, match="differentiable once"):
        grad.sum().backward()


def test_only_the_loss_carries_a_gradient() -> None:
    p = problem()
    out = ops.decisive_cross_entropy(
        **p, teacher_hidden=teacher_of(p), kd_weight=1.0, token_class=torch.zeros(N).long()
    )
    assert out.loss.requires_grad
    assert not any(x is not None and x.requires_grad for x in out[1:])
    with torch.no_grad():
        assert not ops.decisive_cross_entropy(**p).loss.requires_grad
    # only weights: no [R, D] gradient is computed
    p["weights"].requires_grad_()
    out = ops.decisive_cross_entropy(**{**p, "hidden": p["hidden"].detach()})
    (grad,) = torch.autograd.grad(out.loss, p["weights"])
    mean = (out.row_ce - out.loss.detach()) / p["weights"].detach().sum()
    torch.testing.assert_close(grad, mean)


def op_arguments(p: dict[str, Any], compute_grad: bool, teacher: Tensor | None = None) -> tuple:
    rows = torch.tensor([0, 2, 3, 4, 5, 6, 1, -1, -1])
    kd_weight = 0.0 if teacher is None else 0.5
    objective = (None, 1.0, kd_weight, 1.5, "mean", 1 << 20, True, compute_grad)
    given = (p["hidden"], p["lm_head"], p["targets"], p["weights"], rows)
    return (*given, None, teacher, None, None, None, torch.arange(len(rows)) % 3, *objective)


def test_opcheck() -> None:
    p = problem(dtype=torch.float32)
    p["weights"][7:] = 0
    op = torch.ops.dive.decisive_cross_entropy.default
    torch.library.opcheck(op, op_arguments(p, True))
    torch.library.opcheck(op, op_arguments(p, True, teacher_of(p)))
    p["hidden"] = p["hidden"].detach()
    torch.library.opcheck(op, op_arguments(p, False))
    args = op_arguments(p, True)
    saved = (args[4], *op(*args)[-3:])
    backward = torch.ops.dive.decisive_cross_entropy_backward.default
    torch.library.opcheck(backward, (torch.tensor(1.0), *saved, N))
    torch.library.opcheck(backward, (torch.ones(N), *saved, N))


def test_backward_after_compute_grad_false_raises() -> None:
    p = problem()
    p["weights"][7:] = 0
    out = torch.ops.dive.decisive_cross_entropy(*op_arguments(p, False))
    with pytest.raises(DiveError, match="compute_grad=False"):
        out[0].backward()


@pytest.mark.parametrize("listed", [False, True])
def test_compiled_whole(listed: bool) -> None:
    p = problem(dtype=torch.float32)
    p["weights"][4] = 0
    rows = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, -1]) if listed else None
    teacher = teacher_of(p)

    def loss(hidden: Tensor, weights: Tensor) -> reference.DecisiveLoss:
        return ops.decisive_cross_entropy(
            hidden,
            p["lm_head"],
            p["targets"],
            weights,
            teacher_hidden=teacher,
            kd_weight=1.0,
            rows=rows,
            token_class=torch.arange(N) % 3,
        )

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    weights = p["weights"].requires_grad_()
    results = []
    for way in (loss, compiled, lambda *x: checkpoint(loss, *x, use_reentrant=False)):
        out = way(p["hidden"], weights)
        results.append([*out, *torch.autograd.grad(out.loss, [p["hidden"], weights])])
    for other in results[1:]:
        for eager, mine in zip(results[0], other, strict=True):
            assert torch.equal(eager, mine)


def test_live_rows_are_traced_for_cuda_too() -> None:
    """On CUDA the capture is queried, which no compiler traces. It never runs here."""
    graphs = []

    def live(x: Tensor) -> Tensor:
        return cross_entropy._live_rows(torch.ones(x.shape, device="cuda"), None, 1.0, 0.0)

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return lambda *_: [torch.arange(3)]

    rows = torch.compile(live, fullgraph=True, backend=backend)(torch.ones(3))
    assert rows.tolist() == [0, 1, 2] and "arange" in graphs[0].code


def test_autocast_has_no_effect() -> None:
    p = problem(dtype=torch.float32)
    want = run(ops.decisive_cross_entropy, p)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(ops.decisive_cross_entropy, p)
    assert torch.equal(got[0].loss, want[0].loss) and torch.equal(got[1], want[1])


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("spoil", "message"), BAD_VALUES)
def test_bad_values(spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    check_bad_value(spoil, message)


def test_rows_that_miss_or_repeat_one() -> None:
    p = problem()
    with pytest.raises(DiveError, match="rows lists row 8 not at all"):
        ops.decisive_cross_entropy(**p, rows=torch.arange(8))
    with pytest.raises(DiveError, match="rows lists row 2 twice"):
        ops.decisive_cross_entropy(**p, rows=torch.tensor([*range(N), 2]))


SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"hidden": torch.zeros(1, N, D)}, r"hidden is float32 \[1, 9, 6\] .*tensor \[N, D\]"),
    ({"hidden": torch.zeros(N, D).int()}, r"hidden is int32"),
    ({"lm_head": torch.zeros(V, D + 1)}, r"lm_head is float32 \[37, 7\].*want float32 \[37, 6\]"),
    ({"lm_head": torch.zeros(V, D).half()}, r"lm_head is float16 .*want float32"),
    ({"lm_head": torch.zeros(V, D, device="meta")}, r"lm_head is .*on meta, want .*on cpu"),
    ({"targets": torch.zeros(N)}, r"targets is float32 \[9\] .*want int64 \[9\]"),
    ({"targets": torch.zeros(N + 1).long()}, r"targets is int64 \[10\]"),
    ({"weights": torch.zeros(N, 1)}, r"weights is float32 \[9, 1\]"),
    ({"bias": torch.zeros(D)}, r"bias is float32 \[6\] .*\[37\] \(vocabulary\)"),
    ({"kd_weight": 1.0}, r"teacher_hidden is None, want the teacher's states"),
    ({"teacher_hidden": torch.zeros(N - 1, D)}, r"teacher_hidden is float32 \[8, 6\]"),
    ({"kd_weights": torch.zeros(3)}, r"kd_weights is float32 \[3\]"),
    ({"normalizer": 3.0}, r"normalizer is 3.0, want .*a scalar"),
    ({"token_class": torch.zeros(N)}, r"token_class is float32"),
    ({"rows": torch.zeros(3)}, r"rows is float32 \[3\].*want int64"),
    ({"rows": torch.zeros(3, 1).long()}, r"rows is int64 \[3, 1\]"),
    ({"reduction": "avg"}, r"reduction is 'avg', want one of mean, sum, none"),
    ({"softcap": 0.0}, r"softcap is 0.0, want a finite number > 0"),
    ({"temperature": -1.0}, r"temperature is -1.0"),
    ({"ce_weight": float("nan")}, r"ce_weight is nan"),
    ({"softcap": 1e-300}, r"softcap is 1e-300, want .* whose square is normal in float32"),
    ({"softcap": 1e20}, r"softcap is 1e\+20"),
    ({"temperature": 1e-300}, r"temperature is 1e-300"),
    ({"temperature": 1e-20}, r"temperature is 1e-20"),
    ({"ce_weight": 1e39}, r"ce_weight is 1e\+39, want .* normal in float32"),
    ({"ce_weight": 1e-39}, r"ce_weight is 1e-39"),
    ({"kd_weight": 1e39}, r"kd_weight is 1e\+39"),
    ({"chunk_bytes": 0}, r"chunk_bytes is 0"),
    ({"lm_head": torch.zeros(V, D, requires_grad=True)}, r"lm_head requires a gradient.*freeze it"),
    ({"bias": torch.zeros(V, requires_grad=True)}, r"bias requires a gradient.*freeze it"),
]


@pytest.mark.parametrize(("bad", "message"), SHAPES)
def test_bad_arguments(bad: dict[str, Any], message: str) -> None:
    p = problem(dtype=torch.float32)
    with pytest.raises(DiveError, match=f"decisive_cross_entropy: {message}"):
        ops.decisive_cross_entropy(**{**p, **bad})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["softcap", "temperature"])
@pytest.mark.parametrize("high", [False, True])
def test_the_smallest_and_the_largest_that_are_taken(
    dtype: torch.dtype, name: str, high: bool
) -> None:
    least = torch.finfo(dtype).tiny ** 0.5
    p = problem(dtype=dtype)
    p |= {"teacher_hidden": teacher_of(p), "kd_weight": 1.0, name: 1 / least if high else least}
    p["hidden"].requires_grad_()
    result = ops.decisive_cross_entropy(**p)
    result.loss.backward()
    assert result.loss.isfinite() and p["hidden"].grad.isfinite().all()


def test_a_trainable_head_is_fine_without_gradients() -> None:
    p = problem()
    with torch.no_grad():
        loss = ops.decisive_cross_entropy(**{**p, "lm_head": p["lm_head"].requires_grad_()}).loss
    assert loss.isfinite()
