"""Triton kernels of `dive::steer`, backward.

The gradients of the parameters are sums over all tokens. They are taken in a fixed order: programs
of the second kernel sum their own span of tokens into a workspace, a third kernel adds these
partial sums. There are no atomics, and kernels meet only at launches.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dive.kernels.functions import activation as phi
from dive.kernels.functions import activation_slope as phi_slope
from dive.kernels.functions import product, rounded
from dive.kernels.launch_table import cdiv, configuration, padded_rank, with_fewest_tokens
from dive.kernels.steer import (
    Operands,
    columns_of,
    edit_of,
    has_few_tokens,
    mask_bytes,
    operands,
    programs,
    token_matrix,
)

MIB = 2**20
WORKSPACE_BYTES = 64 * MIB
_MIXING_BYTES = (
    20 * MIB
)  # of the workspace, for the values kept per token; the rest is for partial sums
_PROGRAMS = 512  # of the second kernel: a few per multiprocessor of a large GPU


@triton.jit
def _half_range(x, DTYPE: tl.constexpr):
    """Returns x / top and top, a power of two near the largest |x|: float16 holds the quotient."""
    top = tl.max(tl.max(tl.abs(x), 1), 0)
    top = tl.exp2(tl.ceil(tl.log2(tl.minimum(tl.maximum(top, 1e-30), 1e30))))
    return (x / top).to(DTYPE), top


@triton.jit(do_not_specialize=["first_token", "tokens", "blocks"])
def backward_kernel(
    grad, h, down, bias, up, static, scale, mask, pre, rstd,
    grad_h, mix_out, scaled_out, row_out, bias_part, scale_part,
    first_token, tokens, blocks, width, rank, grad_stride, stride,
    PADDED: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, MASKED: tl.constexpr,
    ADD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Computes grad_h, and for the tokens from first_token on what the parameters' gradients need:

    mix_out [., rank] (phi(pre)), scaled_out [., rank] (gradient of pre, times rstd), row_out [., 2]
    (NORM: the gradient before the norm is row_out[0] * grad - row_out[1] * moved), and per block of
    tokens one row of bias_part [., rank] and scale_part [.], added to the previous values with ADD.
    """
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0), disable_licm=True):
        _backward_block(
            block, grad, h, down, bias, up, static, scale, mask, pre, rstd,
            grad_h, mix_out, scaled_out, row_out, bias_part, scale_part,
            first_token, tokens, width, rank, grad_stride, stride,
            PADDED, ACTIVATION, NORM, MASKED, ADD, BLOCK_T, BLOCK_D,
        )  # fmt: skip


@triton.jit
def _norm_gradient(
    grad, h, up, static, mix, row_out, grad_start, start, local, inside, keep, factor, r,
    width, rank, PADDED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Returns from_grad, from_moved and through of each token, and keeps the first two in row_out.

    The gradient before the norm is from_grad * grad - from_moved * moved; the norm of h adds
    through * h to the gradient of h.
    """
    old = tl.zeros([BLOCK_T], tl.float32)
    new = tl.zeros([BLOCK_T], tl.float32)
    dot = tl.zeros([BLOCK_T], tl.float32)
    for first in range(0, width, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        inner = keep[:, None] & (d < width)[None, :]
        x = tl.load(h + start[:, None] + d[None, :], mask=inner, other=0.0).to(tl.float32)
        g = tl.load(grad + grad_start[:, None] + d[None, :], mask=inner, other=0.0)
        edit = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        edit = edit_of(edit, mix, up, static, d, r, width, rank, PADDED)
        moved = tl.where(inner, x + factor * edit, 0.0)
        old += tl.sum(x * x, 1)
        new += tl.sum(moved * moved, 1)
        dot += tl.sum(g.to(tl.float32) * moved, 1)
    some = new > 0
    length, safe = tl.sqrt(old), tl.sqrt(tl.where(some, new, 1.0))
    along = dot / safe  # the gradient's part along the result
    from_grad = tl.where(some, length / safe, 1.0)
    from_moved = tl.where(some, from_grad * along / safe, 0.0)
    # d|x|/dx is 0 at 0, and a result of 0 was not rescaled
    both = some & (old > 0)
    through = tl.where(both, along / tl.where(both, length, 1.0), 0.0)
    here = local.to(tl.int64) * 2
    tl.store(row_out + here, from_grad, mask=inside)
    tl.store(row_out + here + 1, from_moved, mask=inside)
    return from_grad, from_moved, through


@triton.jit
def _backward_block(
    block, grad, h, down, bias, up, static, scale, mask, pre, rstd,
    grad_h, mix_out, scaled_out, row_out, bias_part, scale_part,
    first_token, tokens, width, rank, grad_stride, stride,
    PADDED: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, MASKED: tl.constexpr,
    ADD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    local = block * BLOCK_T + tl.arange(0, BLOCK_T)
    t = first_token + local
    inside = t < tokens
    keep = inside
    if MASKED:
        keep = inside & (tl.load(mask + t, mask=inside, other=0) != 0)
    long = t.to(tl.int64)
    start, grad_start, out_start = long * stride, long * grad_stride, long * width
    RANKS: tl.constexpr = PADDED if PADDED > 0 else 16
    r = tl.arange(0, RANKS)
    factor = tl.load(scale).to(tl.float32)
    ranked = keep[:, None] & (r < rank)[None, :]
    before = tl.zeros([BLOCK_T, RANKS], tl.float32)
    if PADDED > 0:
        before = tl.load(pre + long[:, None] * rank + r[None, :], mask=ranked, other=0.0)
    inverse = tl.load(rstd + t, mask=keep, other=0.0)
    mix = rounded(phi(before, ACTIVATION), h.dtype.element_ty)

    last = tl.cdiv(width, BLOCK_D) - 1
    from_grad = tl.full([BLOCK_T], 1.0, tl.float32)
    from_moved = tl.zeros([BLOCK_T], tl.float32)
    through = tl.zeros([BLOCK_T], tl.float32)
    if NORM:
        from_grad, from_moved, through = _norm_gradient(
            grad, h, up, static, mix, row_out, grad_start, start, local, inside, keep, factor, r,
            width, rank, PADDED, BLOCK_T, BLOCK_D,
        )  # fmt: skip

    at_edit = tl.zeros(
        [BLOCK_T], tl.float32
    )  # gradient times edit: a token's part of the gradient of the scale
    scaled = tl.zeros([BLOCK_T, RANKS], tl.float32)
    along_x = tl.zeros([BLOCK_T], tl.float32)
    if PADDED > 0:
        at_mix = tl.zeros([BLOCK_T, RANKS], tl.float32)
        for step in range(0, last + 1):
            d = columns_of(step, last, not NORM, BLOCK_D)
            inner = keep[:, None] & (d < width)[None, :]
            g = tl.load(grad + grad_start[:, None] + d[None, :], mask=inner, other=0.0)
            if NORM:
                x = tl.load(h + start[:, None] + d[None, :], mask=inner, other=0.0)
                edit = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
                edit = edit_of(edit, mix, up, static, d, r, width, rank, PADDED)
                g = from_grad[:, None] * g.to(tl.float32) - from_moved[:, None] * (
                    x.to(tl.float32) + factor * edit
                )
                g = rounded(g, h.dtype.element_ty)
            part = tl.load(
                up + d[:, None] * rank + r[None, :],
                mask=(d < width)[:, None] & (r < rank)[None, :],
                other=0.0,
            )
            at_mix = product(g, rounded(part, h.dtype.element_ty), at_mix)
        at_mix = tl.where(ranked, at_mix, 0.0)
        if not NORM:
            at_edit += tl.sum(at_mix * mix.to(tl.float32), 1)
        at_pre = at_mix * factor * phi_slope(before, ACTIVATION)
        at_bias = tl.sum(at_pre, 0)
        offset = tl.load(bias + r, mask=r < rank, other=0.0).to(tl.float32)
        # u = x rstd: only this gives its part along x, as down u = pre - bias
        along_x = tl.sum(at_pre * (before - offset[None, :]), 1) * inverse * inverse / width
        scaled = at_pre * inverse[:, None]
        bias_pointer = (
            bias_part + block * rank + r
        )  # in the workspace, where offsets of 32 bits suffice
        if ADD:
            at_bias += tl.load(bias_pointer, mask=r < rank, other=0.0)
        tl.store(bias_pointer, at_bias, mask=r < rank)
        kept = local.to(tl.int64)[:, None] * rank + r[None, :]
        filled = inside[:, None] & (r < rank)[None, :]
        tl.store(mix_out + kept, mix, mask=filled)
        tl.store(scaled_out + kept, rounded(scaled, scaled_out.dtype.element_ty), mask=filled)
    if h.dtype.element_ty == tl.float16:
        narrow, top = _half_range(scaled, tl.float16)
    else:
        narrow, top = rounded(scaled, h.dtype.element_ty), 1.0

    for step in range(0, last + 1):
        d = columns_of(step, last, NORM, BLOCK_D)
        inner = inside[:, None] & (d < width)[None, :]
        raw = tl.load(grad + grad_start[:, None] + d[None, :], mask=inner, other=0.0)
        x = tl.load(
            h + start[:, None] + d[None, :], mask=keep[:, None] & (d < width)[None, :], other=0.0
        ).to(tl.float32)
        result = raw.to(tl.float32)
        if NORM:
            edit = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
            edit = edit_of(edit, mix, up, static, d, r, width, rank, PADDED)
            result = from_grad[:, None] * result - from_moved[:, None] * (x + factor * edit)
            at_edit += tl.sum(tl.where(keep[:, None], result * edit, 0.0), 1)
        result += (through - along_x)[:, None] * x
        if PADDED > 0:
            part = tl.load(
                down + r[:, None] * width + d[None, :],
                mask=(r < rank)[:, None] & (d < width)[None, :],
                other=0.0,
            )
            part = rounded(part, h.dtype.element_ty)
            nothing = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
            result += top * product(narrow, part, nothing)
        result = rounded(result, h.dtype.element_ty)
        if MASKED:
            result = tl.where(keep[:, None], result, raw)
        pointer = grad_h + out_start[:, None] + d[None, :]
        tl.store(pointer, result, mask=inner, eviction_policy="evict_first")
    at_scale = tl.sum(at_edit, 0)
    if ADD:
        at_scale += tl.load(scale_part + block)
    tl.store(scale_part + block, at_scale)


@triton.jit(do_not_specialize=["first_token", "end", "span"])
def parameters_kernel(
    grad, h, up, static, scale, mask, mix_in, scaled_in, row_in, partials,
    first_token, end, width, rank, span, grad_stride, stride,
    PADDED: tl.constexpr, NORM: tl.constexpr, MASKED: tl.constexpr,
    ADD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sums the j-th span of `span` tokens into partials[j], columns of block i: program (i, j).

    partials [., 2 rank + 1, width]: gradient of up without the scale, of down, and of h + edit.
    """
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    within = d < width
    span_index = tl.program_id(1)
    RANKS: tl.constexpr = PADDED if PADDED > 0 else 16
    r = tl.arange(0, RANKS)
    factor = tl.load(scale).to(tl.float32)
    pointer = partials + span_index.to(tl.int64) * (2 * rank + 1) * width
    matrix = r[:, None] * width + d[None, :]
    filled = (r < rank)[:, None] & within[None, :]
    total = tl.zeros([BLOCK_D], tl.float32)
    at_up = tl.zeros([RANKS, BLOCK_D], tl.float32)
    at_down = tl.zeros([RANKS, BLOCK_D], tl.float32)
    if ADD:
        total = tl.load(pointer + 2 * rank * width + d, mask=within, other=0.0)
        if PADDED > 0:
            at_up = tl.load(pointer + matrix, mask=filled, other=0.0)
            at_down = tl.load(pointer + rank * width + matrix, mask=filled, other=0.0)
    last = tl.minimum(end, first_token + (span_index + 1) * span)
    for begin in range(first_token + span_index * span, last, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        keep = t < last
        if MASKED:
            keep = keep & (tl.load(mask + t, mask=keep, other=0) != 0)
        long = t.to(tl.int64)
        local = (t - first_token).to(tl.int64)
        inner = keep[:, None] & within[None, :]
        ranked = keep[:, None] & (r < rank)[None, :]
        g = tl.load(grad + (long * grad_stride)[:, None] + d[None, :], mask=inner, other=0.0)
        x = tl.load(h + (long * stride)[:, None] + d[None, :], mask=inner, other=0.0)
        mix = tl.zeros([BLOCK_T, RANKS], tl.float32).to(h.dtype.element_ty)
        kept = local[:, None] * rank + r[None, :]
        if PADDED > 0:
            mix = tl.load(mix_in + kept, mask=ranked, other=0.0)
        if NORM:
            edit = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
            edit = edit_of(edit, mix, up, static, d, r, width, rank, PADDED)
            from_grad = tl.load(row_in + local * 2, mask=keep, other=0.0)
            from_moved = tl.load(row_in + local * 2 + 1, mask=keep, other=0.0)
            exact = from_grad[:, None] * g.to(tl.float32)
            exact -= from_moved[:, None] * (x.to(tl.float32) + factor * edit)
            total += tl.sum(exact, 0)
            g = rounded(exact, h.dtype.element_ty)
        else:
            total += tl.sum(g.to(tl.float32), 0)
        if PADDED > 0:
            at_up = product(tl.trans(mix), g, at_up)
            scaled = tl.load(scaled_in + kept, mask=ranked, other=0.0)
            if h.dtype.element_ty == tl.float16:
                narrow, top = _half_range(scaled, tl.float16)
                nothing = tl.zeros([RANKS, BLOCK_D], tl.float32)
                at_down += top * product(tl.trans(narrow), x, nothing)
            else:
                scaled = rounded(scaled, h.dtype.element_ty)
                at_down = product(tl.trans(scaled), x, at_down)
    tl.store(pointer + 2 * rank * width + d, total, mask=within)
    if PADDED > 0:
        tl.store(pointer + matrix, at_up, mask=filled)
        tl.store(pointer + rank * width + matrix, at_down, mask=filled)


@triton.jit(do_not_specialize=["count", "blocks"])
def reduce_kernel(
    partials, bias_part, scale_part, static, scale,
    grad_down, grad_bias, grad_up, grad_static, grad_scale,
    count, blocks, width, rank,
    PADDED: tl.constexpr, NORM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Adds the partial sums in order. Program (i, k): columns of block i of up, down, static (k 0,
    1, 2); program (0, 3) sums bias and scale."""
    what = tl.program_id(1)
    RANKS: tl.constexpr = PADDED if PADDED > 0 else 16
    r = tl.arange(0, RANKS)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    factor = tl.load(scale).to(tl.float32)
    step = (2 * rank + 1) * width  # offsets of 32 bits suffice in the workspace
    if what < 2:
        if PADDED > 0:
            filled = (r < rank)[:, None] & (d < width)[None, :]
            matrix = partials + what * rank * width + r[:, None] * width + d[None, :]
            sums = tl.zeros([RANKS, BLOCK_D], tl.float32)
            for part in range(count):
                sums += tl.load(matrix + part * step, mask=filled, other=0.0)
            if what == 0:
                pointer = grad_up + d[None, :] * rank + r[:, None]
                tl.store(pointer, rounded(sums * factor, grad_up.dtype.element_ty), mask=filled)
            else:
                pointer = grad_down + r[:, None] * width + d[None, :]
                tl.store(pointer, rounded(sums, grad_down.dtype.element_ty), mask=filled)
    elif what == 2:
        total = tl.zeros([BLOCK_D], tl.float32)
        for part in range(count):
            pointer = partials + part * step + 2 * rank * width + d
            total += tl.load(pointer, mask=d < width, other=0.0)
        total = rounded(total * factor, grad_static.dtype.element_ty)
        tl.store(grad_static + d, total, mask=d < width)
    elif tl.program_id(0) == 0:
        dot = tl.zeros([BLOCK_D], tl.float32)
        if not NORM:  # else scale_part has the term of `static`, from the exact gradient
            for first in range(0, width, BLOCK_D):
                column = first + tl.arange(0, BLOCK_D)
                fixed = tl.load(static + column, mask=column < width, other=0.0).to(tl.float32)
                for part in range(count):
                    pointer = partials + part * step + 2 * rank * width + column
                    dot += fixed * tl.load(pointer, mask=column < width, other=0.0)
        p = tl.arange(0, BLOCK_P)
        scales = tl.zeros([BLOCK_P], tl.float32)
        biases = tl.zeros([BLOCK_P, RANKS], tl.float32)
        for first in range(0, blocks, BLOCK_P):
            row = first + p
            scales += tl.load(scale_part + row, mask=row < blocks, other=0.0)
            biases += tl.load(
                bias_part + row[:, None] * rank + r[None, :],
                mask=(row < blocks)[:, None] & (r < rank)[None, :],
                other=0.0,
            )
        at_scale = tl.sum(dot, 0) + tl.sum(scales, 0)
        if PADDED > 0:
            at_bias = rounded(tl.sum(biases, 0), grad_bias.dtype.element_ty)
            tl.store(grad_bias + r, at_bias, mask=r < rank)
        tl.store(grad_scale, rounded(at_scale, grad_scale.dtype.element_ty))


# --- launching ---------------------------------------------------------------------------------


class BackwardLayout(NamedTuple):
    """The division of the backward pass: tokens per round, partial sums, tokens per partial sum."""

    tokens: int
    partials: int
    span: int


@functools.lru_cache(1024)
def backward_layout(
    tokens: int, width: int, rank: int, block_t: int, block_d: int
) -> BackwardLayout:
    """Divides the backward pass by the sizes alone, so that two runs sum in one order.

    The workspace is bounded. A round ends when the values kept per token have filled their part of
    it; the next round adds to the same partial sums.
    """
    per_token = 4 * (2 * rank + 2)
    per_round = max(block_t, _MIXING_BYTES // per_token // block_t * block_t)
    per_round = min(per_round, cdiv(tokens, block_t) * block_t)
    block_bytes = cdiv(per_round, block_t) * 4 * (rank + 1)
    left = WORKSPACE_BYTES - per_round * per_token - block_bytes
    partials = min(
        max(1, left // (4 * (2 * rank + 1) * width)),
        cdiv(_PROGRAMS, cdiv(width, block_d)),
        cdiv(per_round, block_t),
    )
    span = cdiv(cdiv(per_round, block_t), partials) * block_t
    return BackwardLayout(per_round, cdiv(per_round, span), span)


def backward(
    grad: Tensor,
    h: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    pre: Tensor,
    rstd: Tensor,
    activation: str,
    norm_preserving: bool,
    narrow: Operands | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes gradients of h, down, down_bias, up, static and scale, each in its own dtype.

    narrow: down and up in the dtype of h, where the caller has them.
    """
    g, x = token_matrix(grad), token_matrix(h)
    (tokens, width), rank = x.shape, down.shape[0]
    grads = tuple(p.new_empty(p.shape) for p in (h, down, down_bias, up, static, scale))
    if x.numel() == 0:
        return tuple(p.zero_() for p in grads)  # type: ignore[return-value]
    grad_h, grad_down, grad_bias, grad_up, grad_static, grad_scale = grads
    padded = padded_rank(rank)
    down, down_bias, up, static = (p.contiguous() for p in (down, down_bias, up, static))

    def options(kernel: str) -> dict[str, Any]:
        return configuration(kernel, h.device, h.dtype, padded, width)

    rowwise, columnwise = options("steer_backward"), options("steer_parameters")
    if has_few_tokens(x, rowwise["BLOCK_T"]):
        rowwise = with_fewest_tokens(rowwise)
    else:
        down, up = operands("steer_backward", down, up, x, padded, narrow)
    steps = (rowwise["BLOCK_T"], columnwise["BLOCK_T"])
    layout = backward_layout(tokens, width, rank, max(steps), columnwise["BLOCK_D"])
    blocks = cdiv(layout.tokens, rowwise["BLOCK_T"])

    def workspace(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    partials = workspace(layout.partials, 2 * rank + 1, width)
    mix, bias_part = x.new_empty(layout.tokens, rank), workspace(blocks, rank)
    # bfloat16 has the range for it; float16 is scaled into its range only where it is used
    narrow = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
    scaled = x.new_empty(layout.tokens, rank, dtype=narrow)
    row, scale_part = workspace(layout.tokens if norm_preserving else 0, 2), workspace(blocks)
    masked = mask_bytes(mask, x)
    shared = {
        "PADDED": padded,
        "NORM": norm_preserving,
        "MASKED": mask is not None,
    }
    # without norm preservation h is read once, in the second sweep
    swept = 2 if norm_preserving else 1
    grid = (programs("steer_backward", x, padded, blocks, rowwise["BLOCK_T"], swept),)
    for first in range(0, tokens, layout.tokens):
        # blocks without tokens in the last round add zeros
        add, end = first > 0, min(tokens, first + layout.tokens)
        backward_kernel[grid](
            g, x, down, down_bias, up, static, scale, masked, pre, rstd,
            grad_h, mix, scaled, row, bias_part, scale_part,
            first, tokens, blocks, width, rank, g.stride(0), x.stride(0),
            ACTIVATION=activation, ADD=add, **shared, **rowwise,
        )  # fmt: skip
        parameters_kernel[(cdiv(width, columnwise["BLOCK_D"]), layout.partials)](
            g, x, up, static, scale, masked, mix, scaled, row, partials,
            first, end, width, rank, layout.span, g.stride(0), x.stride(0),
            ADD=add, **shared, **columnwise,
        )  # fmt: skip
    reduce = options("steer_reduce")
    reduce_kernel[(cdiv(width, reduce["BLOCK_D"]), 4)](
        partials, bias_part, scale_part, static, scale,
        grad_down, grad_bias, grad_up, grad_static, grad_scale,
        layout.partials, blocks, width, rank, PADDED=padded, NORM=norm_preserving, **reduce,
    )  # fmt: skip
    return grads  # type: ignore[return-value]
