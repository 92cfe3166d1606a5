"""Triton kernel of `dive::steer`, forward. float16, bfloat16 and float32; sums in float32.

A program processes BLOCK_T tokens at a time and sweeps the width in blocks of BLOCK_D: once for the
mixing weights (pre = down u + bias), once to write h'. Norm preservation takes one more sweep, as
it needs the norm of the result before writing. At best the stream is read from HBM once and written
once: the number of programs is limited so that the L2 cache holds their tokens, unless too few
would be left for the multiprocessors, and each sweep starts where the previous one ended.
The backward pass is steer_backward.py.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from dive.kernels.functions import activation as phi
from dive.kernels.functions import product, rounded
from dive.kernels.launch_table import (
    cdiv,
    configuration,
    host,
    padded_rank,
    residents,
    with_fewest_tokens,
)


@triton.jit
def edit_of(edit, mix, up, static, d, r, width, rank, PADDED: tl.constexpr):
    """Returns up mix + static for a block of the width; edit [BLOCK_T, BLOCK_D] is zeros."""
    if PADDED > 0:
        block = tl.load(
            up + d[None, :] * rank + r[:, None],
            mask=(d < width)[None, :] & (r < rank)[:, None],
            other=0.0,
        )
        block = rounded(block, mix.dtype)
        edit = product(mix, block, edit)
    fixed = tl.load(static + d, mask=d < width, other=0.0).to(tl.float32)
    return edit + fixed[None, :]


@triton.jit
def columns_of(step, last, FORWARDS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Returns the columns that a sweep over blocks 0 to last processes at this step. Each sweep has
    the direction opposite to the previous one's, and begins with what that left in the cache."""
    if FORWARDS:
        return tl.arange(0, BLOCK_D) + step * BLOCK_D
    else:
        return tl.arange(0, BLOCK_D) + (last - step) * BLOCK_D


@triton.jit(do_not_specialize=["tokens"])
def forward_kernel(
    h, down, bias, up, static, scale, mask, out, pre, rstd,
    tokens, width, rank, stride, eps,
    PADDED: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, MASKED: tl.constexpr,
    SAVE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Computes out [tokens, width]; with SAVE also pre [tokens, rank] and rstd [tokens]."""
    for block in tl.range(
        tl.program_id(0), tl.cdiv(tokens, BLOCK_T), tl.num_programs(0), disable_licm=True
    ):
        _forward_block(
            block, h, down, bias, up, static, scale, mask, out, pre, rstd,
            tokens, width, rank, stride, eps,
            PADDED, ACTIVATION, NORM, MASKED, SAVE, BLOCK_T, BLOCK_D, STAGES,
        )  # fmt: skip


@triton.jit
def _forward_block(
    block, h, down, bias, up, static, scale, mask, out, pre, rstd,
    tokens, width, rank, stride, eps,
    PADDED: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, MASKED: tl.constexpr,
    SAVE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = t < tokens
    keep = inside
    if MASKED:
        keep = inside & (tl.load(mask + t, mask=inside, other=0) != 0)
    start = t.to(tl.int64) * stride
    out_start = t.to(tl.int64) * width
    if PADDED > 0:
        r = tl.arange(0, PADDED)
        mixing = tl.zeros([BLOCK_T, PADDED], tl.float32)
    else:
        r = tl.arange(0, 16)
        mixing = tl.zeros([BLOCK_T, 16], tl.float32)
    squares = tl.zeros([BLOCK_T], tl.float32)
    for first in range(0, width, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        x = tl.load(
            h + start[:, None] + d[None, :], mask=keep[:, None] & (d < width)[None, :], other=0.0
        )
        wide = x.to(tl.float32)
        squares += tl.sum(wide * wide, 1)
        if PADDED > 0:
            part = tl.load(
                down + r[None, :] * width + d[:, None],
                mask=(r < rank)[None, :] & (d < width)[:, None],
                other=0.0,
            )
            mixing = product(x, rounded(part, x.dtype), mixing)
    inverse = tl.rsqrt(squares / width + eps)
    if PADDED > 0:
        offset = tl.load(bias + r, mask=r < rank, other=0.0).to(tl.float32)
        mixing = mixing * inverse[:, None] + offset[None, :]
        if SAVE:
            tl.store(
                pre + t.to(tl.int64)[:, None] * rank + r[None, :],
                mixing,
                mask=inside[:, None] & (r < rank)[None, :],
            )
    if SAVE:
        tl.store(rstd + t, inverse, mask=inside)
    # the padding of the rank is multiplied by zeros of `up`, whatever its activation
    mix = rounded(phi(mixing, ACTIVATION), h.dtype.element_ty)
    factor = tl.load(scale).to(tl.float32)

    ratio = tl.full([BLOCK_T], 1.0, tl.float32)
    last = tl.cdiv(width, BLOCK_D) - 1
    if NORM:
        after = tl.zeros([BLOCK_T], tl.float32)
        largest = tl.zeros([BLOCK_T], tl.float32)
        for step in tl.range(0, last + 1, num_stages=STAGES):
            d = columns_of(step, last, False, BLOCK_D)
            inner = keep[:, None] & (d < width)[None, :]
            x = tl.load(h + start[:, None] + d[None, :], mask=inner, other=0.0).to(tl.float32)
            edit = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
            edit = factor * edit_of(edit, mix, up, static, d, r, width, rank, PADDED)
            moved = x + edit
            after += tl.sum(moved * moved, 1)
            largest = tl.maximum(largest, tl.max(tl.abs(edit), 1))
        # an edit of exactly 0 must not change a bit, however the two sums were rounded
        change = (after > 0) & (largest > 0)
        ratio = tl.where(change, tl.sqrt(squares) / tl.sqrt(tl.where(change, after, 1.0)), 1.0)

    for step in tl.range(0, last + 1, num_stages=STAGES):
        d = columns_of(step, last, NORM, BLOCK_D)
        inner = inside[:, None] & (d < width)[None, :]
        pointer = h + start[:, None] + d[None, :]
        raw = tl.load(pointer, mask=inner, other=0.0, eviction_policy="evict_first")
        edit = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        edit = factor * edit_of(edit, mix, up, static, d, r, width, rank, PADDED)
        result = raw.to(tl.float32) + edit
        if NORM:
            result = result * ratio[:, None]
        result = rounded(result, h.dtype.element_ty)
        if MASKED:
            result = tl.where(keep[:, None], result, raw)
        pointer = out + out_start[:, None] + d[None, :]
        tl.store(pointer, result, mask=inner, eviction_policy="evict_first")


# --- launching ---------------------------------------------------------------------------------


Operands = tuple[Tensor, Tensor]  # down and up


def token_matrix(x: Tensor) -> Tensor:
    """Returns x as [T, D] with contiguous rows; a view where possible."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def mask_bytes(mask: Tensor | None, other: Tensor) -> Tensor:
    return other if mask is None else mask.reshape(-1).contiguous().view(torch.uint8)


@functools.cache
def processors(index: int | None) -> tuple[int, int]:
    """Returns the number of multiprocessors of a GPU, and the bytes of its L2 cache."""
    properties = torch.cuda.get_device_properties(index)
    return properties.multi_processor_count, properties.L2_cache_size


def has_few_tokens(x: Tensor, block_t: int) -> bool:
    """Whether x [T, D] has fewer blocks of block_t tokens than its GPU has multiprocessors."""
    return x.is_cuda and cdiv(x.shape[0], block_t) < processors(x.device.index)[0]


def operands(
    kernel: str, down: Tensor, up: Tensor, x: Tensor, padded: int, given: Operands | None
) -> Operands:
    """Returns the factors of the products as every block of tokens reads them: in the dtype of x,
    to which the kernels would round them. given: where the caller has these already."""
    if given is not None:
        return given
    if host(kernel, x.device, x.dtype, padded, x.shape[1])["casts"]:
        down, up = down.to(x.dtype), up.to(x.dtype)
    return down.contiguous(), up.contiguous()


def programs(kernel: str, x: Tensor, padded: int, blocks: int, block_t: int, swept: int = 1) -> int:
    """Returns the number of programs that share the blocks of block_t tokens of x [T, D].

    swept: how many tensors of that size are swept more than once.
    """
    if not x.is_cuda:
        return blocks
    least = residents(kernel, x.device, x.dtype, padded, x.shape[1])
    block_bytes = swept * block_t * x.shape[1] * x.element_size()
    return shared(blocks, block_bytes, least, *processors(x.device.index))


def shared(blocks: int, block_bytes: int, least: int, processors: int, cache_bytes: int) -> int:
    """Returns how many programs can be resident so that their blocks fit into 3/4 of the cache.

    At least `least` per multiprocessor, even where these do not fit; all get as many blocks.
    """
    most = max(least * processors, 3 * cache_bytes // 4 // block_bytes)
    return cdiv(blocks, cdiv(blocks, most))


def forward(
    h: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    activation: str,
    norm_preserving: bool,
    eps: float,
    compute_grad: bool,
    narrow: Operands | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes h', and with compute_grad pre [T, R] and rstd [T] in float32, else empty ones.

    narrow: down and up in the dtype of h, where the caller has them.
    """
    x = token_matrix(h)
    (tokens, width), rank = x.shape, down.shape[0]
    out = h.new_empty(h.shape)
    pre = x.new_empty((tokens, rank) if compute_grad else (0, 0), dtype=torch.float32)
    rstd = x.new_empty(tokens if compute_grad else 0, dtype=torch.float32)
    padded = padded_rank(rank)
    options = configuration("steer_forward", h.device, h.dtype, padded, width)
    if out.numel():
        if has_few_tokens(x, options["BLOCK_T"]):
            options = with_fewest_tokens(
                options
            )  # and few programs read the parameters, which need no cast
        else:
            down, up = operands("steer_forward", down, up, x, padded, narrow)
        blocks = cdiv(tokens, options["BLOCK_T"])
        grid = (programs("steer_forward", x, padded, blocks, options["BLOCK_T"]),)
        forward_kernel[grid](
            x, down.contiguous(), down_bias.contiguous(), up.contiguous(), static.contiguous(),
            scale, mask_bytes(mask, x), out, pre, rstd, tokens, width, rank, x.stride(0), eps,
            PADDED=padded, ACTIVATION=activation, NORM=norm_preserving, MASKED=mask is not None,
            SAVE=compute_grad, **options,
        )  # fmt: skip
    return out, pre, rstd
