"""Triton kernels of `dive::steer_grouped_`: steering in place, every token by its own adapter.

With h = hidden + residual, hidden becomes hidden + (steered(h) - h), where `steered` is that of
steer.py. float16, bfloat16 and float32; sums in float32. One launch, without memory of its own and
without a look at `adapters` on the host, so that a CUDA graph can replay it with other adapters.

Few tokens (the requests of a decoding step) get a program each, which reads its adapter's number
and multiplies without tensor cores: a product of 16 tokens would be mostly rows of others, and a
program that goes through the whole width with it takes longer than the layer may. The parameters
come from the L2 cache, once per token.

More tokens (prompts) come in blocks, with a program for every block and adapter, which ends at once
where no token of its block has that adapter and leaves out the others.

Both read hidden and residual for the norm and the product with `down`, then hidden for the edit.
Norm preservation takes one more pass, as it needs the norm of the result, and reads both each time.
"""

import triton
import triton.language as tl
from torch import Tensor

from dive.kernels.functions import activation as phi
from dive.kernels.functions import product, rounded
from dive.kernels.launch_table import cdiv, configuration, padded_rank
from dive.kernels.steer import columns_of, processors


@triton.jit
def state_of(hidden, residual, keep, RESIDUAL: tl.constexpr):
    """Returns hidden and hidden + residual in float32, 0 where not keep; both are addresses."""
    old = tl.load(hidden, mask=keep, other=0.0).to(tl.float32)
    x = old
    if RESIDUAL:
        x = old + tl.load(residual, mask=keep, other=0.0).to(tl.float32)
    return old, x


@triton.jit
def preserving(squares, after, largest):
    """Returns the factor that gives the result the norm of the state; squares: their sums."""
    # an edit of exactly 0 must not change a bit, however the two sums were rounded
    change = (after > 0) & (largest > 0)
    return tl.where(change, tl.sqrt(squares) / tl.sqrt(tl.where(change, after, 1.0)), 1.0)


@triton.jit
def changed(old, x, edit, ratio, NORM: tl.constexpr, RESIDUAL: tl.constexpr):
    """Returns what hidden becomes, in float32."""
    if NORM and RESIDUAL:
        return old + ((x + edit) * ratio - x)
    elif NORM:
        return (x + edit) * ratio
    else:
        return old + edit


# --- a program per token -----------------------------------------------------------------------


@triton.jit
def _edit_of_one(mix, up, static, factor, d, r, width, rank, up_d, PADDED: tl.constexpr):
    """Returns factor * (up mix + static) for a block of the width."""
    edit = tl.load(static + d, mask=d < width, other=0.0).to(tl.float32)
    if PADDED > 0:
        block = tl.load(
            up + d[:, None] * up_d + r[None, :],
            mask=(d < width)[:, None] & (r < rank)[None, :],
            other=0.0,
        )
        edit += tl.sum(rounded(block, mix.dtype).to(tl.float32) * mix.to(tl.float32)[None, :], 1)
    return factor * edit


@triton.jit(do_not_specialize=["count"])
def token_kernel(
    hidden, residual, adapters, down, bias, up, static, scale,
    count, width, rank, hidden_t, residual_t, down_l, down_r, bias_l, up_l, up_d, static_l, eps,
    PADDED: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Steers the token of this program. x_t, x_l, ...: from a token, adapter, ... to the next."""
    t = tl.program_id(0).to(tl.int64)
    which = tl.load(adapters + t)
    if (which >= 0) & (which < count):
        _steer_token(
            hidden + t * hidden_t, residual + t * residual_t, down + which * down_l,
            bias + which * bias_l, up + which * up_l, static + which * static_l,
            scale + which, width, rank, down_r, up_d, eps,
            PADDED, ACTIVATION, NORM, RESIDUAL, BLOCK_D, STAGES,
        )  # fmt: skip


@triton.jit
def _steer_token(
    hidden, residual, down, bias, up, static, scale, width, rank, down_r, up_d, eps,
    PADDED: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    dtype = hidden.dtype.element_ty
    last = tl.cdiv(width, BLOCK_D) - 1
    LANES: tl.constexpr = PADDED if PADDED > 0 else 16
    r = tl.arange(0, LANES)
    mixing = tl.zeros([LANES, BLOCK_D], tl.float32)
    squares = tl.zeros([BLOCK_D], tl.float32)
    for step in tl.range(0, last + 1, num_stages=STAGES):
        d = columns_of(step, last, True, BLOCK_D)
        _old, x = state_of(hidden + d, residual + d, d < width, RESIDUAL)
        squares += x * x
        if PADDED > 0:
            part = tl.load(
                down + r[:, None] * down_r + d[None, :],
                mask=(r < rank)[:, None] & (d < width)[None, :],
                other=0.0,
            )
            operand = rounded(x, dtype).to(tl.float32)
            mixing += rounded(part, dtype).to(tl.float32) * operand[None, :]
    before = tl.sum(squares, 0)
    offset = tl.load(bias + r, mask=r < rank, other=0.0).to(tl.float32)
    pre = tl.sum(mixing, 1) * tl.rsqrt(before / width + eps) + offset
    # the padding of the rank is multiplied by zeros of `up`, whatever its activation
    mix = rounded(phi(pre, ACTIVATION), dtype)
    factor = tl.load(scale).to(tl.float32)

    ratio = 1.0
    if NORM:
        after = tl.zeros([BLOCK_D], tl.float32)
        largest = tl.zeros([BLOCK_D], tl.float32)
        for step in tl.range(0, last + 1, num_stages=STAGES):
            d = columns_of(step, last, False, BLOCK_D)
            _old, x = state_of(hidden + d, residual + d, d < width, RESIDUAL)
            edit = _edit_of_one(mix, up, static, factor, d, r, width, rank, up_d, PADDED)
            after += (x + edit) * (x + edit)
            largest = tl.maximum(largest, tl.abs(edit))
        ratio = preserving(before, tl.sum(after, 0), tl.max(largest, 0))

    for step in tl.range(0, last + 1, num_stages=STAGES):
        d = columns_of(step, last, NORM, BLOCK_D)
        old, x = state_of(hidden + d, residual + d, d < width, NORM and RESIDUAL)
        edit = _edit_of_one(mix, up, static, factor, d, r, width, rank, up_d, PADDED)
        new = rounded(changed(old, x, edit, ratio, NORM, RESIDUAL), dtype)
        tl.debug_barrier()  # every warp has loaded its numbers before any of them is overwritten
        tl.store(hidden + d, new, mask=d < width)


# --- a program per block of tokens and adapter -------------------------------------------------


@triton.jit
def _edit_of_block(mix, up, static, factor, d, r, width, rank, up_d, PADDED: tl.constexpr):
    """Returns factor * (mix up^T + static) for a block of the width, [BLOCK_T, BLOCK_D]."""
    edit = tl.zeros([mix.shape[0], d.shape[0]], tl.float32)
    if PADDED > 0:
        block = tl.load(
            up + d[None, :] * up_d + r[:, None],
            mask=(d < width)[None, :] & (r < rank)[:, None],
            other=0.0,
        )
        edit = product(mix, rounded(block, mix.dtype), edit)
    fixed = tl.load(static + d, mask=d < width, other=0.0).to(tl.float32)
    return factor * (edit + fixed[None, :])


@triton.jit(do_not_specialize=["tokens"])
def block_kernel(
    hidden, residual, adapters, down, bias, up, static, scale,
    tokens, width, rank, hidden_t, residual_t, down_l, down_r, bias_l, up_l, up_d, static_l, eps,
    PADDED: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Steers the tokens of a block that have one adapter. x_t, x_l, ...: as in token_kernel."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    which = tl.program_id(1).to(tl.int64)
    keep = tl.load(adapters + t, mask=t < tokens, other=-1) == which
    if tl.max(keep.to(tl.int32), 0) > 0:
        _steer_block(
            hidden + t * hidden_t, residual + t * residual_t, keep, down + which * down_l,
            bias + which * bias_l, up + which * up_l, static + which * static_l,
            scale + which, width, rank, down_r, up_d, eps,
            PADDED, ACTIVATION, NORM, RESIDUAL, BLOCK_T, BLOCK_D,
        )  # fmt: skip


@triton.jit
def _steer_block(
    hidden, residual, keep, down, bias, up, static, scale, width, rank, down_r, up_d, eps,
    PADDED: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """hidden, residual: addresses [BLOCK_T] of the tokens."""
    dtype = hidden.dtype.element_ty
    last = tl.cdiv(width, BLOCK_D) - 1
    LANES: tl.constexpr = PADDED if PADDED > 0 else 16
    r = tl.arange(0, LANES)
    mixing = tl.zeros([BLOCK_T, LANES], tl.float32)
    squares = tl.zeros([BLOCK_T], tl.float32)
    for step in range(0, last + 1):
        d = columns_of(step, last, True, BLOCK_D)
        inner = keep[:, None] & (d < width)[None, :]
        _old, x = state_of(
            hidden[:, None] + d[None, :], residual[:, None] + d[None, :], inner, RESIDUAL
        )
        squares += tl.sum(x * x, 1)
        if PADDED > 0:
            part = tl.load(
                down + r[None, :] * down_r + d[:, None],
                mask=(r < rank)[None, :] & (d < width)[:, None],
                other=0.0,
            )
            mixing = product(rounded(x, dtype), rounded(part, dtype), mixing)
    offset = tl.load(bias + r, mask=r < rank, other=0.0).to(tl.float32)
    pre = mixing * tl.rsqrt(squares / width + eps)[:, None] + offset[None, :]
    mix = rounded(phi(pre, ACTIVATION), dtype)
    factor = tl.load(scale).to(tl.float32)

    ratio = tl.full([BLOCK_T], 1.0, tl.float32)
    if NORM:
        after = tl.zeros([BLOCK_T], tl.float32)
        largest = tl.zeros([BLOCK_T], tl.float32)
        for step in range(0, last + 1):
            d = columns_of(step, last, False, BLOCK_D)
            inner = keep[:, None] & (d < width)[None, :]
            _old, x = state_of(
                hidden[:, None] + d[None, :], residual[:, None] + d[None, :], inner, RESIDUAL
            )
            edit = _edit_of_block(mix, up, static, factor, d, r, width, rank, up_d, PADDED)
            after += tl.sum((x + edit) * (x + edit), 1)
            largest = tl.maximum(largest, tl.max(tl.abs(edit), 1))
        ratio = preserving(squares, after, largest)

    for step in range(0, last + 1):
        d = columns_of(step, last, NORM, BLOCK_D)
        inner = keep[:, None] & (d < width)[None, :]
        address = hidden[:, None] + d[None, :]
        old, x = state_of(address, residual[:, None] + d[None, :], inner, NORM and RESIDUAL)
        edit = _edit_of_block(mix, up, static, factor, d, r, width, rank, up_d, PADDED)
        new = rounded(changed(old, x, edit, ratio[:, None], NORM, RESIDUAL), dtype)
        tl.debug_barrier()  # as in _steer_token
        tl.store(address, new, mask=inner)


# --- launching ---------------------------------------------------------------------------------


def lined(x: Tensor) -> Tensor:
    """Returns x with contiguous numbers in its last dimension; x itself where it has them."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def has_few_tokens(x: Tensor, padded: int) -> bool:
    """Whether the tokens of x [T, D] are so few that each gets a program of its own.

    The parameters of as many tokens come from the L2 cache in little more time than those of one:
    16 MiB for two tokens per multiprocessor of an H100, at rank 16 and 4096 columns.
    """
    return x.is_cuda and x.shape[0] * max(padded, 16) <= 32 * processors(x.device.index)[0]


def steer(
    hidden: Tensor,
    residual: Tensor | None,
    adapters: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    activation: str,
    norm_preserving: bool,
    eps: float,
) -> None:
    """Steers hidden [T, D] in place; the arguments are those of the operator."""
    (tokens, width), (count, rank) = hidden.shape, down_bias.shape
    if not hidden.numel():
        return
    x = lined(hidden)
    beside = x if residual is None else lined(residual)
    own, bias, static, scale = (lined(one) for one in (adapters, down_bias, static, scale))
    down, up = lined(down), lined(up)
    padded = padded_rank(rank)
    few = has_few_tokens(x, padded)
    name = "steer_token" if few else "steer_block"
    options = configuration(name, x.device, x.dtype, padded, width)
    of_rank = (*down.stride()[:2], bias.stride(0), *up.stride()[:2]) if rank else (0,) * 5
    strides = (x.stride(0), beside.stride(0), *of_rank, static.stride(0))
    kernel = token_kernel if few else block_kernel
    grid = (tokens,) if few else (cdiv(tokens, options["BLOCK_T"]), count)
    kernel[grid](
        x, beside, own, down, bias, up, static, scale, count if few else tokens, width, rank,
        *strides, eps,
        PADDED=padded, ACTIVATION=activation, NORM=norm_preserving,
        RESIDUAL=residual is not None, **options,
    )  # fmt: skip
    if x is not hidden:
        hidden.copy_(x)
