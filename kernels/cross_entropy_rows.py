"""Triton kernels of `dive::decisive_cross_entropy` for the row pass between a chunk's products, and
for the row scaling of the backward pass. Everything is computed in float32.

One program processes one row of logits. It reads the row once for logsumexp, argmax and divergence
(each lane keeps its own running maximum and sum, so that warps synchronise once per row), then a
second time from the end to the start, and replaces the logits by the gradient with respect to the
raw logits. The L2 cache of a GPU does not hold all rows in flight: one of 128256 columns takes half
a megabyte, and two programs per multiprocessor take 135 MB of an H100's 50. Since the second sweep
goes backwards, it begins with what was read last, before that is evicted.

A narrow gradient (bfloat16, float16) is stored in the upper half of its float32 row: going
backwards, it only overwrites logits that were read. Within a block the barrier ensures this, as
another warp may be behind; a sweep that prefetches (STAGES) has only prefetched columns before
those.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dive.kernels.functions import hyperbolic_tangent, rounded
from dive.kernels.launch_table import cdiv, configuration

ALIGNMENT = 64  # elements: rows of a buffer start at whole cache lines, and so does a half row


@triton.jit
def _capped(pointer, bias, column, held, within, cap, BIAS: tl.constexpr, CAP: tl.constexpr):
    """Returns the logits of a block, -inf outside the vocabulary, and the slope of the cap.

    held: the columns of the buffer, `within` those of the vocabulary. The columns between hold
    arbitrary values; with them the rows of any vocabulary are read four numbers at a time.
    """
    z = tl.load(pointer + column, mask=held, other=0.0)
    if BIAS:
        z += tl.load(bias + column, mask=within, other=0.0).to(tl.float32)
    slope = 1.0
    if CAP:
        bent = hyperbolic_tangent(tl.where(within, z, 0.0) / cap)
        slope = 1.0 - bent * bent
        z = cap * bent
    return tl.where(within, z, -float("inf")), slope


@triton.jit
def _merged(peak, total, sharpness):
    """Returns maximum and logsumexp of sharpness * x over the lanes."""
    top = tl.max(peak, 0)
    return top, sharpness * top + tl.log(tl.sum(total * tl.exp(sharpness * (peak - top)), 0))


@triton.jit
def rows_kernel(
    logits, teacher, bias, gradient, target, labelled, ce, kd, distilled,
    lse_out, picked_out, argmax_out, kl_out,
    vocab, stride, gradient_stride, cap, temperature,
    BIAS: tl.constexpr, CAP: tl.constexpr, DISTILS: tl.constexpr, TEMPERED: tl.constexpr,
    GRADIENT: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Computes the results of every row of logits and, with GRADIENT, replaces it by its gradient.

    logits, teacher [rows, vocab] float32 with rows `stride` apart; gradient may overlap logits and
    has `stride` columns too, of which those past the vocabulary receive arbitrary values.

    gradient = ce (softmax(z) - labelled * onehot(target)) + kd (softmax(z/T) - softmax(teacher/T)),
    through the cap. ce, kd, and the results lse, picked (z at the target), kl are float32 per row;
    kl is KL(teacher || student) at T, 0 where not distilled.
    """
    row = tl.program_id(0).to(tl.int64)
    pointer = logits + row * stride
    pointer_teacher = teacher + row * stride
    lane = tl.arange(0, BLOCK)
    sharpness = 1.0
    if TEMPERED:
        sharpness = 1.0 / temperature
    low = -3.0e38  # not -inf: the difference of two infinities is NaN
    peak = tl.full([BLOCK], low, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    best = tl.zeros([BLOCK], tl.int32)
    tempered = tl.zeros([BLOCK], tl.float32)
    peak_teacher = tl.full([BLOCK], low, tl.float32)
    total_teacher = tl.zeros([BLOCK], tl.float32)
    apart = tl.zeros([BLOCK], tl.float32)
    for first in tl.range(0, vocab, BLOCK, num_stages=STAGES):
        column = first + lane
        held, within = column < stride, column < vocab
        z, _slope = _capped(pointer, bias, column, held, within, cap, BIAS, CAP)
        step = z - peak
        higher = step > 0
        decay = tl.exp(-tl.abs(step))
        total = tl.where(higher, total * decay + 1.0, total + decay)
        best = tl.where(higher, column, best)
        if DISTILS:
            if TEMPERED:
                decay = tl.exp(-tl.abs(step) * sharpness)
                tempered = tl.where(higher, tempered * decay + 1.0, tempered + decay)
            zt, _slope_teacher = _capped(
                pointer_teacher, bias, column, held, within, cap, BIAS, CAP
            )
            difference = tl.where(within, zt - z, 0.0)
            step = zt - peak_teacher
            decay = tl.exp(-tl.abs(step) * sharpness)
            total_teacher = tl.where(step > 0, total_teacher * decay + 1.0, total_teacher + decay)
            apart = tl.where(step > 0, apart * decay + difference, apart + difference * decay)
            peak_teacher = tl.maximum(peak_teacher, zt)
        peak = tl.maximum(peak, z)

    top, lse = _merged(peak, total, 1.0)
    tl.store(lse_out + row, lse)
    tl.store(argmax_out + row, tl.min(tl.where(peak == top, best, 2147483647), 0).to(tl.int64))
    goal = tl.load(target + row)
    one = tl.arange(0, 1)
    picked, _slope = _capped(pointer, bias, goal + one, one == 0, one == 0, cap, BIAS, CAP)
    tl.store(picked_out + row + one, picked)
    lse_tempered, lse_teacher = lse, 0.0
    if DISTILS:
        if TEMPERED:
            _top_tempered, lse_tempered = _merged(peak, tempered, sharpness)
        top_teacher, lse_teacher = _merged(peak_teacher, total_teacher, sharpness)
        spread = tl.sum(apart * tl.exp(sharpness * (peak_teacher - top_teacher)), 0)
        chance = tl.exp(
            sharpness * top_teacher - lse_teacher
        )  # of the most likely token of the teacher
        divergence = sharpness * spread * chance - lse_teacher + lse_tempered
        tl.store(kl_out + row, tl.where(tl.load(distilled + row) != 0, divergence, 0.0))

    if GRADIENT:
        ce_row = tl.load(ce + row)
        hit = tl.where(tl.load(labelled + row) != 0, ce_row, 0.0)
        if DISTILS:
            kd_row = tl.load(kd + row)
        into = gradient + row * gradient_stride
        blocks = (vocab + BLOCK - 1) // BLOCK
        for done in tl.range(0, blocks, num_stages=STAGES):
            column = (blocks - 1 - done) * BLOCK + lane
            held, within = column < stride, column < vocab
            z, slope = _capped(pointer, bias, column, held, within, cap, BIAS, CAP)
            g = ce_row * tl.exp(z - lse)
            if DISTILS:
                zt, _slope_teacher = _capped(
                    pointer_teacher, bias, column, held, within, cap, BIAS, CAP
                )
                student = tl.exp(sharpness * z - lse_tempered)
                g += kd_row * (student - tl.exp(sharpness * zt - lse_teacher))
            g = tl.where(column == goal, g - hit, g)
            if CAP:
                g = g * slope
            tl.debug_barrier()  # every warp has loaded its logits before any of them is overwritten
            tl.store(into + column, rounded(g, gradient.dtype.element_ty), mask=held)


@triton.jit
def scale_kernel(
    grad, rows, stored, row_scale, weight_slope, grad_hidden, grad_weights,
    width, grad_stride, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_hidden[rows[i]] = stored[i] * (row_scale[i] * upstream of the row), likewise weights.

    Entries whose factor is 0 are skipped. grad_stride 0: one upstream gradient for all.
    """
    entry = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + entry)
    factor = tl.load(row_scale + entry)
    slope = tl.load(weight_slope + entry)
    if (factor != 0) | (slope != 0):
        upstream = tl.load(grad + row * grad_stride).to(tl.float32)
        if tl.program_id(1) == 0:
            tl.store(grad_weights + row, slope * upstream)
        if HIDDEN and factor != 0:
            column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
            value = tl.load(stored + entry * width + column, mask=column < width, other=0.0)
            value = value.to(tl.float32) * (factor * upstream)
            value = rounded(value, grad_hidden.dtype.element_ty)
            tl.store(grad_hidden + row * width + column, value, mask=column < width)


# --- launching ---------------------------------------------------------------------------------


def row_stride(vocab: int) -> int:
    """Returns the distance of two rows in a buffer of logits, in float32 elements."""
    return cdiv(vocab, ALIGNMENT) * ALIGNMENT


def gradient_view(logits: Tensor, vocab: int, dtype: torch.dtype) -> Tensor:
    """Returns the view [rows, vocab] of dtype in the logits' buffer that holds the gradient."""
    if dtype == torch.float32:
        return logits[:, :vocab]
    half = logits.shape[1]
    return logits.view(dtype)[:, half : half + vocab]


def product(states: Tensor, head: Tensor, out: Tensor) -> None:
    """Computes out [rows, vocab] float32 = states head^T; cuBLAS keeps its float32 sums."""
    if states.dtype == torch.float32:
        torch.mm(states, head.t(), out=out)
    elif states.is_cpu:  # under the interpreter: there is no such product on a CPU
        torch.mm(states.float(), head.t().float(), out=out)
    else:
        torch.mm(states, head.t(), out_dtype=torch.float32, out=out)


def to_hidden(gradient: Tensor, head: Tensor, out: Tensor) -> None:
    """Computes out [rows, D] = gradient head, summed in float32 and rounded once.

    A narrow product may add partial sums in its own dtype (PyTorch allows this to cuBLAS for sums
    as long as a vocabulary), and in float16 they overflow.
    """
    if gradient.dtype == torch.float32:
        torch.mm(gradient, head, out=out)
    elif gradient.is_cpu:  # as above
        out.copy_(gradient.float() @ head.float())
    else:
        out.copy_(torch.mm(gradient, head, out_dtype=torch.float32))


def turn_into_gradient(
    logits: Tensor,
    teacher: Tensor | None,
    bias: Tensor | None,
    gradient: Tensor | None,
    target: Tensor,
    labelled: Tensor,
    ce: Tensor,
    kd: Tensor,
    distilled: Tensor,
    results: tuple[Tensor, Tensor, Tensor, Tensor],
    vocab: int,
    softcap: float | None,
    temperature: float,
) -> None:
    """Fills results (lse, picked, argmax, kl) of these rows and, if there is one, the gradient.

    logits, teacher [rows, `row_stride(vocab)`] float32; gradient is `gradient_view(logits, ...)`.
    """
    dtype = torch.float32 if gradient is None else gradient.dtype
    options = configuration("cross_entropy_rows", logits.device, dtype, 0, vocab)
    rows_kernel[(logits.shape[0],)](
        logits, logits if teacher is None else teacher, logits if bias is None else bias,
        logits if gradient is None else gradient, target, labelled.view(torch.uint8), ce, kd,
        distilled.view(torch.uint8), *results,
        vocab, logits.stride(0), 0 if gradient is None else gradient.stride(0),
        1.0 if softcap is None else softcap, temperature,
        BIAS=bias is not None, CAP=softcap is not None, DISTILS=teacher is not None,
        TEMPERED=temperature != 1, GRADIENT=gradient is not None, **options,
    )  # fmt: skip


def backward(
    grad: Tensor, rows: Tensor, stored: Tensor, row_scale: Tensor, weight_slope: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of hidden [total, D] and weights [total] without a host sync."""
    rows, stored = rows.contiguous(), stored.contiguous()  # rows have the caller's layout
    row_scale, weight_slope = row_scale.contiguous(), weight_slope.contiguous()
    width = stored.shape[1]
    hidden = stored.shape[0] > 0
    grad_hidden = stored.new_zeros(total, width)
    grad_weights = weight_slope.new_zeros(total)
    options = configuration("cross_entropy_scale", stored.device, stored.dtype, 0, width)
    if rows.shape[0] > 0:
        columns = cdiv(width, options["BLOCK"]) if hidden else 1
        scale_kernel[(rows.shape[0], max(columns, 1))](
            grad, rows, stored, row_scale, weight_slope, grad_hidden, grad_weights,
            width, grad.stride(0) if grad.dim() else 0, HIDDEN=hidden, **options,
        )  # fmt: skip
    return grad_hidden, grad_weights
