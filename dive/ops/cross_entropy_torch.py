"""The PyTorch path of `dive::decisive_cross_entropy`: one pass over chunks of live rows.

One product computes the logits of a chunk, which become the gradient with respect to the logits in
place, and a second product takes that back to hidden states (a third one computes the teacher's
logits). In between, a few rows are processed at a time, so that they stay in the cache. What is
stored for backward is the gradient of each live row up to one factor per row, kept in float32.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dive.ops.checks import (
    divides,
    first_violation,
    loss_violation,
    raise_for,
    raise_for_bad,
    sum_violation,
)
from dive.ops.chunks import MIB, chunk_layout, gradient_scale
from dive.ops.loss_arguments import LossArguments, wide_of
from dive.reference import CLASSES


def forward(given: LossArguments) -> tuple[Tensor, ...]:
    """Computes loss, row_ce, row_kl, lse, argmax, class_loss, class_accuracy, class_count, status,
    stored, row_scale, weight_slope.

    row_kl is [0] without a teacher, the class statistics are [0] without token_class. stored [R, D]
    (R = length of rows; [0, D] without compute_grad), row_scale [R] and weight_slope [R] are for
    backward: d loss / d hidden[rows[i]] = row_scale[i] * stored[i],
    d loss / d weights[rows[i]] = weight_slope[i], both 0 at entries that are not live.
    """
    hidden, rows, reduction = given.hidden, given.rows, given.reduction
    total, distils = hidden.shape[0], given.teacher_hidden is not None
    status = first_violation(given)
    if given.validate:
        raise_for_bad(status, given)
    entries = live_entries(given)
    w, m, index = entries.w, entries.m, entries.index
    for code, factor, factors, normalizer in (
        (7, given.ce_weight, w, given.normalizer),
        (8, given.kd_weight, m, given.kd_normalizer),
    ):
        if factor > 0 and reduction == "mean" and normalizer is None:
            status = sum_violation(status, code, factors.sum())
    if given.validate:
        raise_for(status)
    # the share of a row in the loss, divided by its weight
    ce_share = given.ce_weight * _reciprocal(w, given.normalizer, reduction)
    kd_share = given.kd_weight * _reciprocal(m, given.kd_normalizer, reduction)

    results, temperature = RowResults(given), given.temperature
    results.fill(entries, w * ce_share, m * kd_share * temperature)
    row_ce = torch.where(entries.in_range, results.lse - results.picked, 0.0)
    row_kl = results.kl * temperature**2

    ce, kl = w * ce_share * row_ce, m * kd_share * row_kl
    slope = ce_share * row_ce
    if reduction == "mean" and given.normalizer is None:
        # divide before summing: a sum of large weights is finite, their sum times the loss is not
        slope = slope - ce_share * (w * _reciprocal(w, None, "mean") * row_ce).sum()

    def by_row(values: Tensor, empty: int = 0) -> Tensor:
        return values.new_full((total,), empty).index_copy_(0, index, values)

    loss = by_row(ce + kl) if reduction == "none" else (ce + kl).sum()
    status = loss_violation(status, loss, row_ce, row_kl)
    if given.validate:
        raise_for(status)
    loss = torch.where(status[0] == 0, loss, float("nan"))

    capacity = rows.shape[0]
    stored = results.stored
    if given.compute_grad and index.shape[0] < capacity:
        stored = hidden.new_zeros(capacity, hidden.shape[1])
        stored.index_copy_(0, entries.position, results.stored)
    return (
        loss,
        by_row(row_ce),
        by_row(row_kl) if distils else w.new_empty(0),
        by_row(results.lse),
        by_row(results.argmax, -1),
        *_class_statistics(given.token_class, entries, row_ce, results.argmax),
        status,
        stored,
        w.new_zeros(capacity).index_copy_(0, entries.position, results.scale),
        w.new_zeros(capacity).index_copy_(0, entries.position, slope),
    )


@dataclass(frozen=True)
class LossEntries:
    """The live entries of `rows`, [n] each."""

    position: Tensor  # int64, in `rows`
    index: Tensor  # int64, of the row of hidden
    target: Tensor  # int64, 0 where it is out of range
    in_range: Tensor  # bool
    w: Tensor  # weight of the cross entropy, in the dtype of the sums
    m: Tensor  # and of the distillation


def live_entries(given: LossArguments) -> LossEntries:
    """The entries of `rows` that are live; one host sync."""
    total, wide = given.hidden.shape[0], wide_of(given.hidden)
    w = given.weights.detach().to(wide)
    m = torch.zeros_like(w)
    if given.teacher_hidden is not None:
        m = (w > 0).to(wide) if given.kd_weights is None else given.kd_weights.detach().to(wide)
    listed = given.rows if total > 0 else given.rows[:0]
    live = (listed >= 0) & (listed < total)
    index = torch.where(live, listed, 0)
    live &= (given.ce_weight * w[index] > 0) | (given.kd_weight * m[index] > 0)
    position = live.nonzero()[:, 0]
    index = index[position]
    target = given.targets[index]
    in_range = (target >= 0) & (target < given.lm_head.shape[0])
    target = torch.where(in_range, target, 0)
    return LossEntries(position, index, target, in_range, w[index], m[index])


def backward(
    grad: Tensor, rows: Tensor, stored: Tensor, row_scale: Tensor, weight_slope: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of hidden [total, D], rounded once, and of weights [total].

    grad is [] or, with reduction="none", [total].
    """
    entries = (row_scale != 0).nonzero()[:, 0]
    upstream = grad.to(row_scale.dtype)
    if grad.dim() == 0:
        upstream = upstream.expand(total)
    index = rows[entries]
    grad_hidden = stored.new_zeros(total, stored.shape[1])
    if stored.shape[0] > 0:
        factor = upstream[index] * row_scale[entries]
        chosen = stored if entries.shape[0] == stored.shape[0] else stored[entries]
        scaled = (chosen * factor[:, None]).to(stored.dtype)
        grad_hidden.index_copy_(0, index, scaled)
    entries = (weight_slope != 0).nonzero()[:, 0]
    index = rows[entries]
    grad_weights = weight_slope.new_zeros(total)
    grad_weights.index_copy_(0, index, upstream[index] * weight_slope[entries])
    return grad_hidden, grad_weights


class RowResults:
    """The live rows' results, filled chunk by chunk."""

    def __init__(self, given: LossArguments) -> None:
        self.hidden, self.head, self.bias = given.hidden, given.lm_head, given.bias
        self.teacher, self.softcap = given.teacher_hidden, given.softcap
        self.temperature, self.compute_grad = given.temperature, given.compute_grad
        self.chunk_bytes = given.chunk_bytes
        self.wide = wide_of(self.hidden)
        self.gradient_scale = gradient_scale(self.hidden.dtype, self.head.shape[0])

    def fill(self, entries: LossEntries, ce: Tensor, kd: Tensor) -> None:
        """Computes the results of the n live entries. Their gradient with respect to the logits is
        ce (softmax(z) - onehot(target)) + kd (softmax(z / T) - softmax(teacher / T))."""
        count, width = entries.index.shape[0], self.head.shape[1]
        # one factor per row makes its larger coefficient 1: no weight leaves the range of a dtype
        top = torch.maximum(ce, kd)
        self.scale = top / self.gradient_scale
        safe = torch.where(top > 0, top, 1.0)
        ce, kd = self.gradient_scale * ce / safe, self.gradient_scale * kd / safe

        def rows(dtype: torch.dtype = self.wide) -> Tensor:
            return entries.index.new_empty(count, dtype=dtype)

        self.lse, self.picked, self.argmax = rows(), rows(), rows(torch.int64)
        self.kl = rows().zero_()
        self.stored = self.hidden.new_empty(count if self.compute_grad else 0, width)
        if count > 0:
            self._fill_chunks(entries, ce, kd)

    def _fill_chunks(self, entries: LossEntries, ce: Tensor, kd: Tensor) -> None:
        """Runs `fill` chunk by chunk; no factor is above `gradient_scale`."""
        index, distilled = entries.index, entries.m > 0
        count, vocab = index.shape[0], self.head.shape[0]
        layout = chunk_layout(
            count,
            vocab,
            self.hidden.dtype,
            self.hidden.device,
            self.chunk_bytes,
            self.teacher is not None,
            self.softcap is not None,
            self.temperature != 1,
        )
        tiles = [
            index.new_empty(layout.tile_rows, vocab, dtype=self.wide) for _ in range(layout.scratch)
        ]
        buffers = [
            self.hidden.new_empty(layout.chunk_rows, vocab)
            for _ in range(1 if self.teacher is None else 2)
        ]
        for start in range(0, count, layout.chunk_rows):
            part = slice(start, min(start + layout.chunk_rows, count))
            chosen = index[part]
            logits = buffers[0][: chosen.shape[0]]
            self._logits(self.hidden[chosen], logits)
            teacher = None
            if self.teacher is not None:
                teacher = buffers[1][: chosen.shape[0]]
                # a row that is not distilled may hold anything
                states = self.teacher[chosen].masked_fill(~distilled[part, None], 0.0)
                self._logits(states, teacher)
            for first in range(part.start, part.stop, layout.tile_rows):
                tile = slice(first, min(first + layout.tile_rows, part.stop))
                inside = slice(tile.start - part.start, tile.stop - part.start)
                self._fill_tile(
                    tile,
                    logits[inside],
                    None if teacher is None else teacher[inside],
                    [scratch[: tile.stop - tile.start] for scratch in tiles],
                    entries.target[tile, None],
                    entries.in_range[tile, None],
                    ce[tile, None],
                    kd[tile, None],
                    distilled[tile, None],
                )
            if self.compute_grad:
                self._states(logits, self.stored[part])

    def _capped(self, logits: Tensor, scratch: list[Tensor]) -> Tensor:
        """Returns capped logits in the dtype of summation, in place where they have it."""
        z = logits if logits.dtype == self.wide else scratch.pop().copy_(logits)
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z

    def _fill_tile(
        self,
        rows: slice,
        logits: Tensor,
        teacher: Tensor | None,
        scratch: list[Tensor],
        target: Tensor,
        labelled: Tensor,
        ce: Tensor,
        kd: Tensor,
        distilled: Tensor,
    ) -> None:
        """Fills the rows' results and turns `logits` [r, V] into the gradient, in place."""
        temperature, tempered = self.temperature, self.temperature != 1
        z = self._capped(logits, scratch)
        slope = None
        if self.softcap is not None and self.compute_grad:
            slope = torch.mul(z, z, out=scratch.pop()).mul_(-1 / self.softcap**2).add_(1)
        peak, argmax = _largest(z)
        self.argmax[rows] = argmax[:, 0]
        self.picked[rows] = z.gather(1, target)[:, 0]
        if teacher is not None:
            zt = self._capped(teacher, scratch)
            apart = torch.sub(zt, z, out=scratch.pop())
            lse_teacher = _softmax_(zt, *_largest(zt), temperature)
            kl = apart.mul_(zt).sum(1, keepdim=True) / temperature - lse_teacher
        student = z
        if teacher is not None and tempered:
            student = scratch.pop().copy_(z)
            lse_student = _softmax_(student, peak, argmax, temperature)
        lse = _softmax_(z, peak, argmax, 1.0)
        self.lse[rows] = lse[:, 0]
        if teacher is not None:
            kl += lse_student if tempered else lse
            self.kl[rows] = torch.where(distilled, kl, 0.0)[:, 0]
        if not self.compute_grad:
            return
        if teacher is None:
            if self.gradient_scale != 1:
                z.mul_(self.gradient_scale)
            # what ce is, or the whole row's factor is 0
            ce = torch.full_like(ce, self.gradient_scale)
        else:
            if tempered:
                z.mul_(ce).addcmul_(student, kd)
            else:
                z.mul_(ce + kd)
            z.addcmul_(zt, kd, value=-1)
        z.scatter_add_(1, target, torch.where(labelled, -ce, 0.0))
        if slope is not None:
            z.mul_(slope)
        if z is not logits:
            logits.copy_(z)

    # float16 products on a CPU are so slow that they seem to hang: they are computed in float32

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        vocab, width = self.head.shape
        size = max(64, MIB // max(width, 1))
        for first in range(0, vocab, size):
            yield slice(first, first + size), self.head[first : first + size].float()

    def _widens(self) -> bool:
        return self.hidden.dtype == torch.float16 and self.hidden.device.type == "cpu"

    def _logits(self, states: Tensor, out: Tensor) -> None:
        if self._widens():
            states = states.float()
            for part, block in self._blocks():
                product = states @ block.T
                out[:, part] = product if self.bias is None else product + self.bias[part]
        elif self.bias is None:
            torch.mm(states, self.head.T, out=out)
        else:
            torch.addmm(self.bias, states, self.head.T, out=out)

    def _states(self, gradient: Tensor, out: Tensor) -> None:
        if self._widens():
            total = out.new_zeros(out.shape, dtype=torch.float32)
            for part, block in self._blocks():
                total.addmm_(gradient[:, part].float(), block)
            out.copy_(total)
        else:
            torch.mm(gradient, self.head, out=out)


def _largest(z: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the maximum of each row of z [r, V] and its first index, both [r, 1].

    On a CPU a maximum with its index is four times as slow as one without: only the block of the
    row that holds the maximum is searched for the index.
    """
    blocks = math.gcd(z.shape[1], 64)
    if blocks < 8 or z.device.type != "cpu":
        return z.max(1, keepdim=True)
    parts = z.view(z.shape[0], blocks, -1)
    peak, block = parts.amax(2).max(1, keepdim=True)
    within = parts.gather(1, block[..., None].expand(-1, 1, parts.shape[2])).argmax(2)
    return peak, block * parts.shape[2] + within


def _softmax_(z: Tensor, peak: Tensor, argmax: Tensor, temperature: float) -> Tensor:
    """Turns z [r, V] into softmax(z / temperature) in place; returns its logsumexp [r, 1].

    peak, argmax [r, 1]: the maximum of z, whose probability is 1 / sum(exp(z - peak)).
    """
    if temperature != 1:
        z.div_(temperature)
    torch.softmax(z, 1, out=z)
    return peak / temperature - z.gather(1, argmax).log_()


def _reciprocal(factors: Tensor, normalizer: Tensor | None, reduction: str) -> Tensor:
    """Returns 1 / normaliser [], and 0 where the normaliser is 0 or has no reciprocal.

    Without one given, the normaliser of a mean is the sum of the factors.
    """
    if normalizer is None:
        if reduction != "mean":
            return factors.new_ones(())
        normalizer = factors.sum()
    normalizer = normalizer.detach().to(factors.dtype)
    some = (normalizer > 0) & divides(normalizer)
    return torch.where(some, 1 / torch.where(some, normalizer, 1.0), 0.0)


def _class_statistics(
    classes: Tensor | None, entries: LossEntries, row_ce: Tensor, argmax: Tensor
) -> list[Tensor]:
    """Returns mean row_ce and accuracy [3] and count int64 [3] of the weighted rows of each class.

    All are [0] without classes. Plain sums: they have one order on every device.
    """
    if classes is None:
        return [row_ce.new_empty(0), row_ce.new_empty(0), argmax.new_empty(0)]
    counted = entries.in_range & (entries.w > 0)
    own = classes[entries.index, None] == torch.arange(CLASSES, device=classes.device)
    member = counted[:, None] & own
    count = member.sum(0)
    some = count.clamp(min=1)
    loss = torch.where(member, row_ce[:, None], 0.0).sum(0)
    hit = argmax == entries.target
    hits = (member & hit[:, None]).sum(0).to(row_ce.dtype)
    return [loss / some, hits / some, count]
