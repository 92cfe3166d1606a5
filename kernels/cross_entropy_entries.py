"""Triton kernels of `dive::decisive_cross_entropy` for all but its products and its row pass.

In PyTorch this takes some 160 small operations, which cost up to a tenth of the loss of a small
batch; here it is one launch before the chunks, one per chunk, and one after them.

`prepare_kernel` and `finish_kernel` are one program each: they read a few numbers per row, their
sums have one order, and there is a barrier where one warp reads what another wrote.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dive.kernels.launch_table import cdiv, configuration

NOWHERE = tl.constexpr(2147483647)
TINY = tl.constexpr(2.0**-126)  # the smallest float32 that is not denormal


@triton.jit
def _entry(
    rows, weights, kd_weights, entry, capacity, total, ce_weight, kd_weight,
    DISTILS: tl.constexpr, KD_GIVEN: tl.constexpr,
):  # fmt: skip
    """Returns the row of each entry (0 if there is none), whether it is live, and its weights."""
    row = tl.load(rows + entry, mask=entry < capacity, other=-1)
    valid = (row >= 0) & (row < total)
    row = tl.where(valid, row, 0)
    w = tl.load(weights + row, mask=valid, other=0.0).to(tl.float32)
    m = w * 0.0
    if DISTILS:
        if KD_GIVEN:
            m = tl.load(kd_weights + row, mask=valid, other=0.0).to(tl.float32)
        else:
            m = tl.where(w > 0, 1.0, 0.0)
    live = valid & ((ce_weight * w > 0) | (kd_weight * m > 0))
    return row, live, tl.where(live, w, 0.0), tl.where(live, m, 0.0)


@triton.jit
def _reciprocal(normalizer, total, GIVEN: tl.constexpr, MEAN: tl.constexpr):
    """Returns 1 / normaliser, or 0 where the normaliser is 0 or has no reciprocal, and whether it
    has none: it is not finite, or denormal."""
    amount = tl.full([], 1.0, tl.float32)  # not computed from a total that may be infinite
    lost = amount == 0
    if GIVEN:
        exact = tl.load(normalizer)
        amount = exact.to(tl.float32)
        lost = (amount == 0) & (exact != 0)
    elif MEAN:
        amount = total
    some = (amount >= TINY) & (amount < float("inf"))
    return tl.where(some, 1.0 / tl.where(some, amount, 1.0), 0.0), (
        (some | (amount == 0)) == 0
    ) | lost


@triton.jit
def _unless_found(code, row, value, index, values, number: tl.constexpr):
    """Returns code, row and value, or those of a violation at `index` where the code is still 0."""
    found = (index < NOWHERE) & (code == 0)
    here = tl.load(values + index, mask=found, other=0).to(tl.float64)
    code = tl.where(found, number, code)
    return code, tl.where(found, index, row), tl.where(found, here, value)


@triton.jit(do_not_specialize=["total", "capacity"])
def prepare_kernel(
    targets, weights, rows, kd_weights, normalizer, kd_normalizer,
    index_out, target_out, live_out, labelled_out, distilled_out, ce_out, kd_out, scale_out,
    shares, status,
    total, capacity, vocab, ce_weight, kd_weight, temperature, gradient_scale,
    DISTILS: tl.constexpr, KD_GIVEN: tl.constexpr, MEAN: tl.constexpr,
    GIVEN: tl.constexpr, KD_NORM_GIVEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Computes for every entry of `rows` its row, target and flags, and the factors of its terms
    (the larger one is `gradient_scale`, or both are 0) with the scale that they were divided by;
    shares [3]: ce_weight / n_w, kd_weight / n_m, 1 / n_w; status [3] float64, as in
    `dive.ops.checks`."""
    lane = tl.arange(0, BLOCK)
    bad_target = tl.full([BLOCK], NOWHERE, tl.int32)
    bad_weight = tl.full([BLOCK], NOWHERE, tl.int32)
    bad_kd = tl.full([BLOCK], NOWHERE, tl.int32)
    bad_row = tl.full([BLOCK], NOWHERE, tl.int32)
    for first in range(0, total, BLOCK):
        row = first + lane
        inside = row < total
        target = tl.load(targets + row, mask=inside, other=0)
        given = tl.load(weights + row, mask=inside, other=0.0)
        w = given.to(tl.float32)
        wrong = (w > 0) & ((target < 0) | (target >= vocab))
        bad_target = tl.where(wrong, tl.minimum(bad_target, row), bad_target)
        wrong = ((w >= 0) & (w < float("inf"))) == 0  # also for NaN
        wrong |= (w == 0) & (given != 0)  # a float64 weight that is 0 in float32
        bad_weight = tl.where(wrong, tl.minimum(bad_weight, row), bad_weight)
        if KD_GIVEN:
            kd_given = tl.load(kd_weights + row, mask=inside, other=0.0)
            m = kd_given.to(tl.float32)
            wrong = ((m >= 0) & (m < float("inf"))) == 0
            wrong |= (m == 0) & (kd_given != 0)
            bad_kd = tl.where(wrong, tl.minimum(bad_kd, row), bad_kd)
    sum_w = tl.zeros([BLOCK], tl.float32)
    sum_m = tl.zeros([BLOCK], tl.float32)
    for first in range(0, capacity, BLOCK):
        entry = first + lane
        listed = tl.load(rows + entry, mask=entry < capacity, other=-1)
        wrong = (listed < -1) | (listed >= total)
        bad_row = tl.where(wrong, tl.minimum(bad_row, entry), bad_row)
        _row, _live, w, m = _entry(
            rows, weights, kd_weights, entry, capacity, total, ce_weight, kd_weight,
            DISTILS, KD_GIVEN,
        )  # fmt: skip
        sum_w += w
        sum_m += m
    total_w, total_m = tl.sum(sum_w, 0), tl.sum(sum_m, 0)
    share, no_number = _reciprocal(normalizer, total_w, GIVEN, MEAN)
    kd_share, kd_no_number = _reciprocal(kd_normalizer, total_m, KD_NORM_GIVEN, MEAN)
    tl.store(shares, ce_weight * share)
    tl.store(shares + 1, kd_weight * kd_share)
    tl.store(shares + 2, share)

    # in the order in which they are reported
    code = tl.min(bad_target, 0) * 0
    at, value = code, code.to(tl.float64)
    code, at, value = _unless_found(code, at, value, tl.min(bad_target, 0), targets, 1)
    code, at, value = _unless_found(code, at, value, tl.min(bad_row, 0), rows, 4)
    code, at, value = _unless_found(code, at, value, tl.min(bad_weight, 0), weights, 2)
    if KD_GIVEN:
        code, at, value = _unless_found(code, at, value, tl.min(bad_kd, 0), kd_weights, 3)
    if GIVEN:
        index = tl.where(no_number, 0, NOWHERE)
        code, at, value = _unless_found(code, at, value, index, normalizer, 5)
    if KD_NORM_GIVEN:
        index = tl.where(kd_no_number, 0, NOWHERE)
        code, at, value = _unless_found(code, at, value, index, kd_normalizer, 6)
    if MEAN and not GIVEN:
        found = (code == 0) & no_number & (ce_weight > 0)
        code, value = tl.where(found, 7, code), tl.where(found, total_w.to(tl.float64), value)
    if MEAN and not KD_NORM_GIVEN:
        found = (code == 0) & kd_no_number & (kd_weight > 0)
        code, value = tl.where(found, 8, code), tl.where(found, total_m.to(tl.float64), value)
    tl.store(status, code.to(tl.float64))
    tl.store(status + 1, at.to(tl.float64))
    tl.store(status + 2, value)

    for first in range(0, capacity, BLOCK):
        entry = first + lane
        inside = entry < capacity
        row, live, w, m = _entry(
            rows, weights, kd_weights, entry, capacity, total, ce_weight, kd_weight,
            DISTILS, KD_GIVEN,
        )  # fmt: skip
        target = tl.load(targets + row, mask=live, other=-1)
        labelled = live & (target >= 0) & (target < vocab)
        ce = w * (ce_weight * share)
        kd = m * (kd_weight * kd_share) * temperature
        top = tl.maximum(ce, kd)
        safe = tl.where(top > 0, top, 1.0)
        tl.store(index_out + entry, row, mask=inside)
        tl.store(target_out + entry, tl.where(labelled, target, 0), mask=inside)
        tl.store(live_out + entry, live.to(tl.uint8), mask=inside)
        tl.store(labelled_out + entry, labelled.to(tl.uint8), mask=inside)
        tl.store(distilled_out + entry, (m > 0).to(tl.uint8), mask=inside)
        tl.store(ce_out + entry, gradient_scale * ce / safe, mask=inside)
        tl.store(kd_out + entry, gradient_scale * kd / safe, mask=inside)
        tl.store(scale_out + entry, top / gradient_scale, mask=inside)


@triton.jit
def gather_kernel(states, index, keep, out, width, stride, BLOCK: tl.constexpr):
    """out[i] = states[index[i]], or 0 where keep[i] is 0, whatever the row holds."""
    entry = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(index + entry)
    known = tl.where(tl.load(keep + entry) != 0, width, 0)
    value = tl.load(states + row * stride + column, mask=column < known, other=0.0)
    tl.store(out + entry * width + column, value, mask=column < width)


@triton.jit
def _blank_rows(
    loss, row_ce, row_kl, row_lse, row_argmax, blank, total,
    DISTILS: tl.constexpr, BY_ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Stores the results of a row without a live entry for all rows; blank is its loss."""
    lane = tl.arange(0, BLOCK)
    nothing = tl.zeros([BLOCK], tl.float32)
    for first in range(0, total, BLOCK):
        row = first + lane
        inside = row < total
        tl.store(row_ce + row, nothing, mask=inside)
        tl.store(row_lse + row, nothing, mask=inside)
        tl.store(row_argmax + row, tl.full([BLOCK], -1, tl.int64), mask=inside)
        if DISTILS:
            tl.store(row_kl + row, nothing, mask=inside)
        if BY_ROW:
            tl.store(loss + row, blank, mask=inside)


@triton.jit
def _distillation(
    kd_weights, kl, row, entry, w, lives, temperature, KD_GIVEN: tl.constexpr,
):  # fmt: skip
    """Returns weight and divergence of live entries."""
    m = tl.where(w > 0, 1.0, 0.0)
    if KD_GIVEN:
        m = tl.load(kd_weights + row, mask=lives, other=0.0).to(tl.float32)
    return m, tl.load(kl + entry, mask=lives, other=0.0) * (temperature * temperature)


@triton.jit
def _store_class(count, loss, hits, class_loss, class_accuracy, class_count, k: tl.constexpr):
    """Stores the statistics of one class from the sums of the lanes."""
    count, losses, hits = tl.sum(count, 0), tl.sum(loss, 0), tl.sum(hits, 0)
    some = tl.maximum(count, 1.0)
    tl.store(class_count + k, count.to(tl.int64))
    tl.store(class_loss + k, losses / some)
    tl.store(class_accuracy + k, hits / some)


@triton.jit(do_not_specialize=["total", "capacity"])
def finish_kernel(
    index, live, labelled, target, weights, kd_weights, shares, status,
    lse, picked, argmax, kl, token_class,
    loss, row_ce, row_kl, row_lse, row_argmax, slope_out, class_loss, class_accuracy, class_count,
    total, capacity, temperature,
    DISTILS: tl.constexpr, KD_GIVEN: tl.constexpr, CENTRED: tl.constexpr, BY_ROW: tl.constexpr,
    CLASSED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scatters the entries' results to rows: [total] each, 0 (argmax -1) without a live entry.

    CENTRED: the normaliser is the sum of the weights, which enters the slope of a weight.
    """
    lane = tl.arange(0, BLOCK)
    ce_share, kd_share, share = tl.load(shares), tl.load(shares + 1), tl.load(shares + 2)
    spoilt = tl.load(status) != 0
    nothing = tl.zeros([BLOCK], tl.float32)
    blank = tl.where(spoilt, float("nan"), nothing)
    _blank_rows(
        loss, row_ce, row_kl, row_lse, row_argmax, blank, total, DISTILS, BY_ROW, BLOCK
    )  # fmt: skip

    sum_loss = nothing
    odd_row = nothing  # 1 where the loss of a row is not finite
    odd_loss = nothing  # 1 where its weighted loss is not finite
    sum_ce = nothing
    count_0, count_1, count_2 = nothing, nothing, nothing
    loss_0, loss_1, loss_2 = nothing, nothing, nothing
    hits_0, hits_1, hits_2 = nothing, nothing, nothing
    for first in range(0, capacity, BLOCK):
        entry = first + lane
        lives = tl.load(live + entry, mask=entry < capacity, other=0) != 0
        with_label = tl.load(labelled + entry, mask=lives, other=0) != 0
        row = tl.load(index + entry, mask=lives, other=0)
        w = tl.load(weights + row, mask=lives, other=0.0).to(tl.float32)
        ce = tl.load(lse + entry, mask=with_label, other=0.0)
        ce -= tl.load(picked + entry, mask=with_label, other=0.0)
        sum_ce += w * share * ce
        combined = w * ce_share * ce
        odd_row = tl.where(tl.abs(ce) < float("inf"), odd_row, 1.0)
        if DISTILS:
            m, divergence = _distillation(
                kd_weights, kl, row, entry, w, lives, temperature, KD_GIVEN
            )
            combined += m * kd_share * divergence
            odd_row = tl.where(tl.abs(divergence) < float("inf"), odd_row, 1.0)
        sum_loss += combined
        odd_loss = tl.where(tl.abs(combined) < float("inf"), odd_loss, 1.0)
        if CLASSED:
            kind = tl.load(token_class + row, mask=with_label & (w > 0), other=-1).to(tl.int32)
            right = tl.load(argmax + entry, mask=with_label, other=-1)
            right = right == tl.load(target + entry, mask=with_label, other=-2)
            hit = tl.where(right, 1.0, 0.0)
            count_0 += tl.where(kind == 0, 1.0, 0.0)
            count_1 += tl.where(kind == 1, 1.0, 0.0)
            count_2 += tl.where(kind == 2, 1.0, 0.0)
            loss_0 += tl.where(kind == 0, ce, 0.0)
            loss_1 += tl.where(kind == 1, ce, 0.0)
            loss_2 += tl.where(kind == 2, ce, 0.0)
            hits_0 += tl.where(kind == 0, hit, 0.0)
            hits_1 += tl.where(kind == 1, hit, 0.0)
            hits_2 += tl.where(kind == 2, hit, 0.0)
    whole = tl.sum(sum_loss, 0)
    odd = tl.max(odd_loss, 0) > 0
    if not BY_ROW:
        odd |= (tl.abs(whole) < float("inf")) == 0
    if (spoilt == 0) & odd & (tl.max(odd_row, 0) == 0):
        spoilt = spoilt | True
        tl.store(status, 9.0)
        tl.store(status + 1, 0.0)
        tl.store(status + 2, whole.to(tl.float64))
        if BY_ROW:
            for first in range(0, total, BLOCK):
                row = first + lane
                tl.store(loss + row, nothing + float("nan"), mask=row < total)
    if not BY_ROW:
        tl.store(loss, tl.where(spoilt, float("nan"), whole))
    if CLASSED:
        _store_class(count_0, loss_0, hits_0, class_loss, class_accuracy, class_count, 0)
        _store_class(count_1, loss_1, hits_1, class_loss, class_accuracy, class_count, 1)
        _store_class(count_2, loss_2, hits_2, class_loss, class_accuracy, class_count, 2)

    middle = ce_share * 0.0
    if CENTRED:
        middle = ce_share * tl.sum(sum_ce, 0)
    tl.debug_barrier()  # all warps have written the blanks
    for first in range(0, capacity, BLOCK):
        entry = first + lane
        inside = entry < capacity
        lives = tl.load(live + entry, mask=inside, other=0) != 0
        with_label = tl.load(labelled + entry, mask=lives, other=0) != 0
        row = tl.load(index + entry, mask=lives, other=0)
        w = tl.load(weights + row, mask=lives, other=0.0).to(tl.float32)
        own = tl.load(lse + entry, mask=lives, other=0.0)
        ce = tl.where(with_label, own - tl.load(picked + entry, mask=lives, other=0.0), 0.0)
        tl.store(slope_out + entry, tl.where(lives, ce_share * ce - middle, 0.0), mask=inside)
        tl.store(row_ce + row, ce, mask=lives)
        tl.store(row_lse + row, own, mask=lives)
        best = tl.load(argmax + entry, mask=lives, other=0)
        tl.store(row_argmax + row, best, mask=lives)
        combined = w * ce_share * ce
        if DISTILS:
            m, divergence = _distillation(
                kd_weights, kl, row, entry, w, lives, temperature, KD_GIVEN
            )
            tl.store(row_kl + row, divergence, mask=lives)
            combined += m * kd_share * divergence
        if BY_ROW:
            tl.store(loss + row, tl.where(spoilt, float("nan"), combined), mask=lives)


# --- launching ---------------------------------------------------------------------------------


class LossEntries(NamedTuple):
    """The entries of `rows`, [capacity] each; flags are uint8."""

    index: Tensor
    target: Tensor
    live: Tensor
    labelled: Tensor
    distilled: Tensor
    ce: Tensor
    kd: Tensor
    scale: Tensor
    shares: Tensor  # [3]
    status: Tensor  # [3] float64


def prepare(
    targets: Tensor,
    weights: Tensor,
    rows: Tensor,
    kd_weights: Tensor | None,
    normalizer: Tensor | None,
    kd_normalizer: Tensor | None,
    distils: bool,
    ce_weight: float,
    kd_weight: float,
    temperature: float,
    mean: bool,
    gradient_scale: float,
    vocab: int,
) -> LossEntries:
    """Computes the entries of `rows` in one launch."""
    capacity = rows.shape[0]

    def new(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=rows.device)

    def several(count: int, dtype: torch.dtype) -> list[Tensor]:
        # each starts at a multiple of 16 bytes: other pointers would compile another kernel
        whole = new(dtype, count, cdiv(capacity, 16) * 16)
        return [one[:capacity] for one in whole]

    index, target = several(2, torch.int64)
    flags, factors = several(3, torch.uint8), several(2, torch.float32)
    scale, shares = new(torch.float32, capacity), new(torch.float32, 3)
    status = new(torch.float64, 3)
    options = configuration("cross_entropy_prepare", rows.device, torch.float32, 0, 1)
    targets, weights, rows = targets.contiguous(), weights.contiguous(), rows.contiguous()
    prepare_kernel[(1,)](
        targets, weights, rows, weights if kd_weights is None else kd_weights.contiguous(),
        weights if normalizer is None else normalizer,
        weights if kd_normalizer is None else kd_normalizer,
        index, target, *flags, *factors, scale, shares, status,
        targets.shape[0], capacity, vocab, ce_weight, kd_weight, temperature, gradient_scale,
        DISTILS=distils, KD_GIVEN=kd_weights is not None, MEAN=mean,
        GIVEN=normalizer is not None, KD_NORM_GIVEN=kd_normalizer is not None, **options,
    )  # fmt: skip
    return LossEntries(index, target, *flags, *factors, scale, shares, status)


def gather(states: Tensor, index: Tensor, keep: Tensor) -> Tensor:
    """Returns rows of states [N, D] as [n, D], 0 where not kept."""
    states = states if states.stride(1) == 1 else states.contiguous()
    count, width = index.shape[0], states.shape[1]
    out = states.new_empty(count, width)
    options = configuration("cross_entropy_gather", states.device, states.dtype, 0, width)
    columns = cdiv(width, options["BLOCK"])
    if out.numel():
        gather_kernel[(count, columns)](
            states, index, keep, out, width, states.stride(0), **options
        )
    return out


def finish(
    entries: LossEntries,
    results: tuple[Tensor, Tensor, Tensor, Tensor],
    weights: Tensor,
    kd_weights: Tensor | None,
    token_class: Tensor | None,
    distils: bool,
    temperature: float,
    centred: bool,
    by_row: bool,
) -> list[Tensor]:
    """Computes loss, row_ce, row_kl, lse, argmax, class_loss, class_accuracy, class_count, slope.

    results: lse, picked, argmax, kl of the entries. One launch.
    """
    total, capacity = weights.shape[0], entries.index.shape[0]

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=weights.device)

    classes = 0 if token_class is None else 3
    loss = new(total) if by_row else new()
    outputs: list[Any] = [
        loss, new(total), new(total if distils else 0), new(total), new(total, dtype=torch.int64),
    ]  # fmt: skip
    slope = new(capacity)
    statistics = [new(classes), new(classes), new(classes, dtype=torch.int64)]
    options = configuration("cross_entropy_finish", weights.device, torch.float32, 0, 1)
    weights = weights.contiguous()
    finish_kernel[(1,)](
        entries.index, entries.live, entries.labelled, entries.target, weights,
        weights if kd_weights is None else kd_weights.contiguous(), entries.shares, entries.status,
        *results, weights if token_class is None else token_class.contiguous(),
        *outputs, slope, *statistics, total, capacity, temperature,
        DISTILS=distils, KD_GIVEN=kd_weights is not None, CENTRED=centred, BY_ROW=by_row,
        CLASSED=token_class is not None, **options,
    )  # fmt: skip
    return [*outputs, *statistics, slope]
