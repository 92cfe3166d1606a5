"""Triton kernels of `dive::decisive_cross_entropy`: what happens to a chunk's logits between its
products, and the row scaling of the backward pass. Everything is computed in float32.

One program works on one row of logits. It reads the row once for logsumexp, argmax and divergence
(each lane keeps a running maximum and sum of its own, so that warps meet once a row), then a second
time from the end to the start, and leaves the gradient with respect to the raw logits in the place
of the logits. The L2 cache of a GPU does not hold all rows that are under way (of 128256 columns
each is half a megabyte, and two programs a multiprocessor have 135 of an H100's 50): going
backwards, the second sweep meets what was read last before it is gone.

A narrow gradient (bfloat16, float16) goes into the upper half of its float32 row: going backwards
it only overwrites logits that were read. Within a block the barrier sees to that, as another warp
may be behind; what a sweep with loads ahead (STAGES) has read too early is of columns before those.
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
    """Logits of a block, -inf outside, and the slope of the cap.

    held: the columns that the buffer has, `within` those of the vocabulary: what is between may be
    anything, but with it rows of any vocabulary are read four numbers at a time.
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
    """Maximum and logsumexp over the lanes of sharpness * x."""
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
    """logits, teacher [rows, vocab] float32 with rows `stride` apart; gradient may lie over logits,
    and has `stride` columns too, the last of which get anything.

    gradient = ce (softmax(z) - labelled * onehot(target)) + kd (softmax(z/T) - softmax(teacher/T)),
    through the cap. ce, kd, and the results lse, picked (z at the target), kl are float32 a row;
    kl is KL(teacher || student) at T, 0 where not distilled.
    """
    row = tl.program_id(0).to(tl.int64)
    pointer = logits + row * stride
    pointer_teacher = teacher + row * stride
    lane = tl.arange(0, BLOCK)
    sharpness = 1.0
    if TEMPERED:
        sharpness = 1.0 / temperature
    low = -3.0e38  # not -inf: the difference of two of those is no number
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
        chance = tl.exp(sharpness * top_teacher - lse_teacher)  # of the teacher's likeliest token
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
            tl.debug_barrier()  # every warp has its logits before one of them is overwritten
            tl.store(into + column, rounded(g, gradient.dtype.element_ty), mask=held)


@triton.jit
def scale_kernel(
    grad, rows, stored, row_scale, weight_slope, grad_hidden, grad_weights,
    width, grad_stride, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_hidden[rows[i]] = stored[i] * (row_scale[i] * upstream of the row), likewise weights.

    Entries whose factor is 0 are left out, whatever they hold. grad_stride 0: one upstream for all.
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
    """Float32 elements from one row of a buffer of logits to the next."""
    return cdiv(vocab, ALIGNMENT) * ALIGNMENT


def gradient_view(logits: Tensor, vocab: int, dtype: torch.dtype) -> Tensor:
    """[rows, vocab] of dtype: where the kernel leaves the gradient, in the logits' buffer."""
    if dtype == torch.float32:
        return logits[:, :vocab]
    half = logits.shape[1]
    return logits.view(dtype)[:, half : half + vocab]


def product(states: Tensor, head: Tensor, out: Tensor) -> None:
    """out [rows, vocab] float32 = states head^T: cuBLAS keeps its float32 sums."""
    if states.dtype == torch.float32:
        torch.mm(states, head.t(), out=out)
    elif states.is_cpu:  # under the interpreter: a CPU has no such product
        torch.mm(states.float(), head.t().float(), out=out)
    else:
        torch.mm(states, head.t(), out_dtype=torch.float32, out=out)


def to_hidden(gradient: Tensor, head: Tensor, out: Tensor) -> None:
    """out [rows, D] = gradient head, summed in float32 and rounded once.

    A narrow product may add up its parts in its own dtype (PyTorch allows cuBLAS to, where the sum
    is as long as a vocabulary), and in float16 they overflow.
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
    """Gradients of hidden [total, D], rounded once, and of weights [total]; no host sync."""
    rows, stored = rows.contiguous(), stored.contiguous()  # rows are as the caller had them
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
