"""`dive::decisive_cross_entropy`: weighted cross entropy and distillation over a frozen head."""

import math
from typing import Any

import torch
from torch import Tensor

from dive.errors import DiveError
from dive.ops import chunks, cross_entropy_torch
from dive.ops.library import (
    FLOATS,
    check_tensor,
    fail,
    once_differentiable,
    register,
    register_gradient,
    value_text,
)
from dive.ops.loss_arguments import LossArguments, schema, wide_of
from dive.reference import CLASSES, DecisiveLoss

REDUCTIONS = ("mean", "sum", "none")
_NAME = "decisive_cross_entropy"


def decisive_cross_entropy(
    hidden: Tensor,
    lm_head: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    teacher_hidden: Tensor | None = None,
    ce_weight: float = 1.0,
    kd_weight: float = 0.0,
    kd_weights: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: Tensor | None = None,
    kd_normalizer: Tensor | None = None,
    token_class: Tensor | None = None,
    rows: Tensor | None = None,
    chunk_bytes: int | None = None,
    validate: bool | None = None,
) -> DecisiveLoss:
    """Computes the loss of the weighted rows without [N, V] logits of student or teacher.

    ce_weight * sum(weights * CE) / n_w + kd_weight * sum(kd_weights * T^2 KL(teacher || student))
    / n_m, with z = softcap * tanh((hidden lm_head^T + bias) / softcap), or without the cap, for
    student and teacher alike, and T dividing z in the KL only.

    hidden [N, D]: row t predicts targets[t]. Float16 to float64.
    lm_head [V, D], bias [V]: the dtype of hidden, and frozen: while gradients are on, one that
        requires a gradient is refused.
    targets int64 [N]; weights float [N] >= 0. Where the weight is 0 the target may be anything.
    teacher_hidden [N, D]: a constant, needed where kd_weight > 0 and unused where it is 0.
    kd_weights float [N] >= 0: 1 where weights > 0 if not given; a constant.
    reduction: "mean": n_w is sum(weights), n_m is sum(kd_weights); "sum" and "none": both are 1;
        "none": the loss is [N], one combined term per row.
    normalizer, kd_normalizer: scalars on the device of hidden that replace n_w and n_m, whatever
        the reduction. A term whose normaliser is 0 is 0; a normaliser that is infinite or
        denormal (below 1.2e-38 in float32), given or summed, is a bad value. So is a float64
        weight that is 0 in float32, and an infinite loss where the loss of no row is infinite.
    softcap, ce_weight, kd_weight, temperature: normal numbers in the dtype of the sums, and so
        are the squares of softcap and temperature.
    token_class integer [N]: 0 template, 1 pathology, 2 end of sequence; others are no class.
    rows int64: the live rows, each once, padded with -1. A row is live where ce_weight * weights
        or kd_weight * kd_weights is above 0. Without it they are looked up: one host sync, except
        under torch.compile and graph capture, where memory for all N rows is allocated instead.
    chunk_bytes: size of all vocabulary-wide buffers together; 32 MiB on a CPU, 256 on CUDA, 512
        there with a teacher. At least 32 rows (256 off the CPU) are computed at a time.
    validate: check the values on the host and raise at once (default on a CPU). Otherwise bad
        values make the loss NaN, and `dive.ops.check(result)` names them.

    Gradients reach hidden and weights through `loss`, once; that of a row that is not live is 0.
    They are computed with the loss, in the same pass, if gradients are on; so non-reentrant
    checkpointing around this call computes the loss twice and saves nothing. Sums are
    float32 (float64 for float64). On a CPU logits of float16 and bfloat16 are rounded to that
    dtype, as F.linear does. Autocast has no effect. Wrong shapes, dtypes, devices and options are
    DiveErrors.
    """
    _check_tensors(hidden, lm_head, targets, weights, bias, teacher_hidden, kd_weights)
    numbers = softcap, ce_weight, kd_weight, temperature
    _check_scalars(*numbers, reduction, chunk_bytes, wide_of(hidden))
    _check_optional(hidden, normalizer, kd_normalizer, token_class, rows)
    device = hidden.device
    if kd_weight > 0 and teacher_hidden is None:
        fail(_NAME, "teacher_hidden", None, f"the teacher's states, as kd_weight is {kd_weight}")
    if kd_weight == 0:
        teacher_hidden = kd_weights = kd_normalizer = None
    if rows is None:
        rows = _live_rows(weights, kd_weights, ce_weight, kd_weight)
    if chunk_bytes is None:
        chunk_bytes = chunks.default_chunk_bytes(device, teacher_hidden is not None)
    given = LossArguments(
        hidden=hidden,
        lm_head=lm_head,
        targets=targets,
        weights=weights,
        rows=rows,
        bias=bias,
        teacher_hidden=teacher_hidden,
        kd_weights=kd_weights,
        normalizer=normalizer,
        kd_normalizer=kd_normalizer,
        token_class=token_class,
        softcap=softcap,
        ce_weight=ce_weight,
        kd_weight=kd_weight,
        temperature=temperature,
        reduction=reduction,
        chunk_bytes=chunk_bytes,
        validate=device.type == "cpu" if validate is None else validate,
        compute_grad=torch.is_grad_enabled() and hidden.requires_grad,
    )
    return _named(given, _loss(*given))


def _named(given: LossArguments, results: tuple[Tensor, ...]) -> DecisiveLoss:
    """What the operator returns, without the tensors for its backward pass."""
    loss, row_ce, row_kl, lse, argmax, class_loss, class_accuracy, class_count, status, *_ = results
    classed = given.token_class is not None
    return DecisiveLoss(
        loss,
        row_ce,
        None if given.teacher_hidden is None else row_kl,
        lse,
        -row_ce,
        argmax,
        class_loss if classed else None,
        class_accuracy if classed else None,
        class_count if classed else None,
        status,
    )


def _check_tensors(
    hidden: Tensor,
    lm_head: Tensor,
    targets: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor | None,
    kd_weights: Tensor | None,
) -> None:
    if not isinstance(hidden, Tensor) or hidden.dtype not in FLOATS or hidden.dim() != 2:
        fail(_NAME, "hidden", value_text(hidden), "a floating-point tensor [N, D]")
    if not isinstance(lm_head, Tensor) or lm_head.dim() != 2 or lm_head.shape[0] < 1:
        fail(_NAME, "lm_head", value_text(lm_head), "a weight [V, D]")
    (count, width), vocab, device = hidden.shape, lm_head.shape[0], hidden.device
    same = (hidden.dtype,)
    check_tensor(_NAME, "lm_head", lm_head, (vocab, width), "vocabulary, width", same, device)
    check_tensor(_NAME, "targets", targets, (count,), "rows of hidden", (torch.int64,), device)
    check_tensor(_NAME, "weights", weights, (count,), "rows of hidden", FLOATS, device)
    if bias is not None:
        check_tensor(_NAME, "bias", bias, (vocab,), "vocabulary", same, device)
    if teacher_hidden is not None:
        shape = (count, width)
        check_tensor(_NAME, "teacher_hidden", teacher_hidden, shape, "as hidden", same, device)
    if kd_weights is not None:
        check_tensor(_NAME, "kd_weights", kd_weights, (count,), "rows of hidden", FLOATS, device)
    if torch.is_grad_enabled():
        constants = (
            ("lm_head", lm_head, "freeze it: requires_grad_(False), or pass lm_head.detach()"),
            ("bias", bias, "freeze it: requires_grad_(False), or pass bias.detach()"),
            ("teacher_hidden", teacher_hidden, "compute it under torch.no_grad()"),
            ("kd_weights", kd_weights, "pass kd_weights.detach()"),
        )
        for name, tensor, remedy in constants:
            if tensor is not None and tensor.requires_grad:
                raise DiveError(
                    f"{_NAME}: {name} requires a gradient, and gets none here ({remedy})"
                )


def _check_optional(
    hidden: Tensor,
    normalizer: Tensor | None,
    kd_normalizer: Tensor | None,
    token_class: Tensor | None,
    rows: Tensor | None,
) -> None:
    device, count = hidden.device, hidden.shape[0]
    for name, scalar in (("normalizer", normalizer), ("kd_normalizer", kd_normalizer)):
        if scalar is not None:
            check_tensor(_NAME, name, scalar, (), "a scalar", FLOATS, device)
    if token_class is not None:
        integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        check_tensor(_NAME, "token_class", token_class, (count,), "rows", integers, device)
    if rows is None:
        return
    if not (isinstance(rows, Tensor) and rows.dim() == 1):
        fail(_NAME, "rows", value_text(rows), "int64 [R], the live rows padded with -1")
    check_tensor(_NAME, "rows", rows, tuple(rows.shape), "rows", (torch.int64,), device)


def _check_scalars(
    softcap: float | None,
    ce_weight: float,
    kd_weight: float,
    temperature: float,
    reduction: str,
    chunk_bytes: int | None,
    wide: torch.dtype,
) -> None:
    # in the dtype of the sums: a value that is 0 or infinite there would make a meaningless loss
    sums, kind = torch.finfo(wide), str(wide).removeprefix("torch.")
    for name, value in (("ce_weight", ce_weight), ("kd_weight", kd_weight)):
        if not (isinstance(value, (int, float)) and (value == 0 or sums.tiny <= value <= sums.max)):
            fail(
                _NAME, name, repr(value),
                f"a finite number >= 0 that is normal in {kind} ({sums.tiny:.3g} to "
                f"{sums.max:.3g})",
            )  # fmt: skip
    least = math.sqrt(sums.tiny)  # their squares, and 1 over these, are needed
    for name, positive in (("temperature", temperature), ("softcap", softcap)):
        if name == "softcap" and positive is None:
            continue
        if not (isinstance(positive, (int, float)) and least <= positive <= 1 / least):
            fail(
                _NAME, name, repr(positive),
                f"a finite number > 0 whose square is normal in {kind} ({least:.3g} to "
                f"{1 / least:.3g})",
            )  # fmt: skip
    if reduction not in REDUCTIONS:
        fail(_NAME, "reduction", repr(reduction), "one of " + ", ".join(REDUCTIONS))
    if chunk_bytes is not None and not (isinstance(chunk_bytes, int) and chunk_bytes > 0):
        fail(_NAME, "chunk_bytes", repr(chunk_bytes), "a number of bytes > 0")


def _live_rows(
    weights: Tensor, kd_weights: Tensor | None, ce_weight: float, kd_weight: float
) -> Tensor:
    with torch.no_grad():
        live = weights > 0
        if kd_weight > 0 and kd_weights is not None:
            live = (live & (kd_weights > 0)) if ce_weight == 0 else (live | (kd_weights > 0))
        elif kd_weight == 0 and ce_weight == 0:
            live = torch.zeros_like(live)
        # in this order: a compiler cannot trace the query of the stream
        if torch.compiler.is_compiling() or (
            weights.is_cuda and torch.cuda.is_current_stream_capturing()
        ):
            every = torch.arange(live.shape[0], device=live.device)
            return torch.where(live, every, -1)
        return live.nonzero()[:, 0]


# --- registration ------------------------------------------------------------------------------


def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    given = LossArguments(*args)
    hidden = given.hidden
    wide = wide_of(hidden)
    count, capacity = hidden.shape[0], given.rows.shape[0]
    classes = 0 if given.token_class is None else CLASSES

    def new(*shape: int, dtype: torch.dtype = wide) -> Tensor:
        return hidden.new_empty(shape, dtype=dtype)

    return (
        new(count) if given.reduction == "none" else new(),
        new(count),
        new(0 if given.teacher_hidden is None else count),
        new(count),
        new(count, dtype=torch.int64),
        new(classes),
        new(classes),
        new(classes, dtype=torch.int64),
        new(3, dtype=torch.float64),
        new(capacity if given.compute_grad else 0, hidden.shape[1], dtype=hidden.dtype),
        new(capacity),
        new(capacity),
    )


def _backward_fake(
    grad: Tensor, rows: Tensor, stored: Tensor, row_scale: Tensor, weight_slope: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    return stored.new_empty(total, stored.shape[1]), weight_slope.new_empty(total)


_loss = register(
    f"{_NAME}({schema()}) -> (Tensor loss, Tensor row_ce, Tensor row_kl, Tensor lse, "
    "Tensor argmax, Tensor class_loss, Tensor class_accuracy, Tensor class_count, Tensor status, "
    "Tensor stored, Tensor row_scale, Tensor weight_slope)",
    lambda *args: cross_entropy_torch.forward(LossArguments(*args)),
    _forward_fake,
)
_loss_backward = register(
    f"{_NAME}_backward(Tensor grad, Tensor rows, Tensor stored, Tensor row_scale, "
    "Tensor weight_slope, SymInt total) -> (Tensor hidden, Tensor weights)",
    cross_entropy_torch.backward,
    _backward_fake,
)
# dive.ops.triton_path registers the Triton kernels over both on CUDA


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            results = _loss(*args)
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        given = LossArguments(*args)
        ctx.save_for_backward(given.rows, *results[-3:])  # what was stored is never changed
        ctx.shape, ctx.weight_dtype = given.hidden.shape, given.weights.dtype
        ctx.compute_grad = given.compute_grad
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        nothing = (None,) * len(LossArguments._fields)
        if grad is None:
            return nothing
        if ctx.needs_input_grad[0] and not ctx.compute_grad:
            raise DiveError(f"{_NAME}: backward of a call that was made with compute_grad=False")
        for_hidden, for_weights = _loss_backward(grad, *ctx.saved_tensors, ctx.shape[0])
        wanted = ctx.needs_input_grad
        for_weights = for_weights.to(ctx.weight_dtype) if wanted[3] else None
        return (for_hidden if wanted[0] else None, None, None, for_weights, *nothing[4:])


def _with_gradient(*args: Any) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled() and (args[0].requires_grad or args[3].requires_grad):
        return _Loss.apply(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return _loss(*args)


register_gradient(_NAME, _with_gradient)
