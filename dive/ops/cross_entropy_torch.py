"""The PyTorch path of `dive::decisive_cross_entropy`: one sweep over chunks of live rows.

A chunk's logits come from one product, turn in place into the gradient with respect to the logits,
and a second product brings that back to hidden states (a third one makes the teacher's logits).
In between, the rows are worked on a few at a time, so that they stay in the cache. What is stored
for backward is the gradient of each live row up to one factor a row, which is kept in float32.
"""

import math
from collections.abc import Iterator

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
from dive.ops.chunks import MIB, gain, plan
from dive.ops.loss_arguments import LossArguments, wide_of
from dive.reference import CLASSES


def forward(given: LossArguments) -> tuple[Tensor, ...]:
    """loss, row_ce, row_kl, lse, argmax, class_loss, class_accuracy, class_count, status, stored,
    row_scale, weight_slope.

    row_kl is [0] without a teacher, the class statistics are [0] without token_class. stored [R, D]
    (R = length of rows; [0, D] without compute_grad), row_scale [R] and weight_slope [R] are for
    backward: d loss / d hidden[rows[i]] = row_scale[i] * stored[i],
    d loss / d weights[rows[i]] = weight_slope[i], both 0 at slots that are not live.
    """
    hidden, weights, rows = given.hidden, given.weights, given.rows
    ce_weight, kd_weight, reduction = given.ce_weight, given.kd_weight, given.reduction
    wide = wide_of(hidden)
    total, vocab = hidden.shape[0], given.lm_head.shape[0]
    distils = given.teacher_hidden is not None
    w = weights.detach().to(wide)
    m = torch.zeros_like(w)
    if distils:
        kd_weights = given.kd_weights
        m = (w > 0).to(wide) if kd_weights is None else kd_weights.detach().to(wide)
    status = first_violation(given)
    if given.validate:
        raise_for_bad(status, given)

    # what belongs to the slots of `rows`; those that are not live are left out
    listed = rows if total > 0 else rows[:0]
    live = (listed >= 0) & (listed < total)
    index = torch.where(live, listed, 0)
    live &= (ce_weight * w[index] > 0) | (kd_weight * m[index] > 0)
    slots = live.nonzero()[:, 0]
    index = index[slots]
    w, m, target = w[index], m[index], given.targets[index]
    in_range = (target >= 0) & (target < vocab)
    target = torch.where(in_range, target, 0)
    for code, factor, factors, normalizer in (
        (7, ce_weight, w, given.normalizer),
        (8, kd_weight, m, given.kd_normalizer),
    ):
        if factor > 0 and reduction == "mean" and normalizer is None:
            status = sum_violation(status, code, factors.sum())
    if given.validate:
        raise_for(status)
    # of a row in the loss, over its weight
    ce_share = ce_weight * _reciprocal(w, given.normalizer, reduction)
    kd_share = kd_weight * _reciprocal(m, given.kd_normalizer, reduction)

    sweep, temperature = Sweep(given), given.temperature
    ce_factor, kd_factor = w * ce_share, m * kd_share * temperature
    sweep.run(index, target, in_range, ce_factor, kd_factor, m > 0)
    row_ce = torch.where(in_range, sweep.lse - sweep.picked, 0.0)
    row_kl = sweep.kl * temperature**2

    ce, kl = w * ce_share * row_ce, m * kd_share * row_kl
    slope = ce_share * row_ce
    if reduction == "mean" and given.normalizer is None:
        # divided before it is summed: a sum of large weights is finite, theirs with the loss not
        slope = slope - ce_share * (w * _reciprocal(w, None, "mean") * row_ce).sum()

    def by_row(values: Tensor, empty: int = 0) -> Tensor:
        return values.new_full((total,), empty).index_copy_(0, index, values)

    loss = by_row(ce + kl) if reduction == "none" else (ce + kl).sum()
    status = loss_violation(status, loss, row_ce, row_kl)
    if given.validate:
        raise_for(status)
    loss = torch.where(status[0] == 0, loss, float("nan"))

    nothing = w.new_empty(0)
    statistics = [nothing, nothing.clone(), torch.empty(0, dtype=torch.int64, device=w.device)]
    if given.token_class is not None:
        hit = sweep.argmax == target
        counted = in_range & (w > 0)
        statistics = _by_class(row_ce, hit, given.token_class[index], counted)

    capacity = rows.shape[0]
    stored = sweep.stored
    if given.compute_grad and index.shape[0] < capacity:
        stored = hidden.new_zeros(capacity, hidden.shape[1]).index_copy_(0, slots, stored)
    return (
        loss,
        by_row(row_ce),
        by_row(row_kl) if distils else nothing.clone(),
        by_row(sweep.lse),
        by_row(sweep.argmax, -1),
        *statistics,
        status,
        stored,
        w.new_zeros(capacity).index_copy_(0, slots, sweep.scale),
        w.new_zeros(capacity).index_copy_(0, slots, slope),
    )


def backward(
    grad: Tensor, rows: Tensor, stored: Tensor, row_scale: Tensor, weight_slope: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden [total, D], rounded once, and of weights [total].

    grad is [] or, with reduction="none", [total].
    """
    slots = (row_scale != 0).nonzero()[:, 0]
    upstream = grad.to(row_scale.dtype)
    if grad.dim() == 0:
        upstream = upstream.expand(total)
    index = rows[slots]
    grad_hidden = stored.new_zeros(total, stored.shape[1])
    if stored.shape[0] > 0:
        factor = upstream[index] * row_scale[slots]
        chosen = stored if slots.shape[0] == stored.shape[0] else stored[slots]
        scaled = (chosen * factor[:, None]).to(stored.dtype)
        grad_hidden.index_copy_(0, index, scaled)
    slots = (weight_slope != 0).nonzero()[:, 0]
    index = rows[slots]
    grad_weights = weight_slope.new_zeros(total)
    grad_weights.index_copy_(0, index, upstream[index] * weight_slope[slots])
    return grad_hidden, grad_weights


class Sweep:
    """The live rows' results, filled chunk by chunk."""

    def __init__(self, given: LossArguments) -> None:
        self.hidden, self.head, self.bias = given.hidden, given.lm_head, given.bias
        self.teacher, self.softcap = given.teacher_hidden, given.softcap
        self.temperature, self.compute_grad = given.temperature, given.compute_grad
        self.chunk_bytes = given.chunk_bytes
        self.wide = wide_of(self.hidden)
        self.gain = gain(self.hidden.dtype, self.head.shape[0])

    def run(
        self,
        index: Tensor,
        target: Tensor,
        labelled: Tensor,
        ce: Tensor,
        kd: Tensor,
        distilled: Tensor,
    ) -> None:
        """index [n]: live rows. Their gradient with respect to the logits is
        ce (softmax(z) - onehot(target)) + kd (softmax(z / T) - softmax(teacher / T))."""
        count, width = index.shape[0], self.head.shape[1]
        # one factor a row brings its larger coefficient to 1: no weight leaves the range of a dtype
        top = torch.maximum(ce, kd)
        self.scale = top / self.gain
        safe = torch.where(top > 0, top, 1.0)
        ce, kd = self.gain * ce / safe, self.gain * kd / safe

        def rows(dtype: torch.dtype = self.wide) -> Tensor:
            return index.new_empty(count, dtype=dtype)

        self.lse, self.picked, self.argmax = rows(), rows(), rows(torch.int64)
        self.kl = rows().zero_()
        self.stored = self.hidden.new_empty(count if self.compute_grad else 0, width)
        if count > 0:
            self._chunks(index, target, labelled, ce, kd, distilled)

    def _chunks(
        self,
        index: Tensor,
        target: Tensor,
        labelled: Tensor,
        ce: Tensor,
        kd: Tensor,
        distilled: Tensor,
    ) -> None:
        """`run`, chunk by chunk; no factor is above the gain."""
        count, vocab = index.shape[0], self.head.shape[0]
        layout = plan(
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
                self._tile(
                    tile,
                    logits[inside],
                    None if teacher is None else teacher[inside],
                    [scratch[: tile.stop - tile.start] for scratch in tiles],
                    target[tile, None],
                    labelled[tile, None],
                    ce[tile, None],
                    kd[tile, None],
                    distilled[tile, None],
                )
            if self.compute_grad:
                self._states(logits, self.stored[part])

    def _capped(self, logits: Tensor, scratch: list[Tensor]) -> Tensor:
        """Logits in the dtype of summation, in place where they have it; capped."""
        z = logits if logits.dtype == self.wide else scratch.pop().copy_(logits)
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z

    def _tile(
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
        temperature, heated = self.temperature, self.temperature != 1
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
        if teacher is not None and heated:
            student = scratch.pop().copy_(z)
            lse_student = _softmax_(student, peak, argmax, temperature)
        lse = _softmax_(z, peak, argmax, 1.0)
        self.lse[rows] = lse[:, 0]
        if teacher is not None:
            kl += lse_student if heated else lse
            self.kl[rows] = torch.where(distilled, kl, 0.0)[:, 0]
        if not self.compute_grad:
            return
        if teacher is None:
            if self.gain != 1:
                z.mul_(self.gain)
            ce = torch.full_like(ce, self.gain)  # what ce is, or the whole row's factor is 0
        else:
            if heated:
                z.mul_(ce).addcmul_(student, kd)
            else:
                z.mul_(ce + kd)
            z.addcmul_(zt, kd, value=-1)
        z.scatter_add_(1, target, torch.where(labelled, -ce, 0.0))
        if slope is not None:
            z.mul_(slope)
        if z is not logits:
            logits.copy_(z)

    # float16 products on a CPU are slow enough to look like a hang: theirs are taken in float32

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
    """Maximum of each row of z [r, V] and its first index, both [r, 1].

    On a CPU a maximum with its index is four times as slow as one without: the index is looked for
    only in the block of the row that holds the maximum.
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
    """1 / normaliser [], 0 where it is 0 or has none; for a mean it is the factors' sum unless
    given."""
    if normalizer is None:
        if reduction != "mean":
            return factors.new_ones(())
        normalizer = factors.sum()
    normalizer = normalizer.detach().to(factors.dtype)
    some = (normalizer > 0) & divides(normalizer)
    return torch.where(some, 1 / torch.where(some, normalizer, 1.0), 0.0)


def _by_class(row_ce: Tensor, hit: Tensor, classes: Tensor, counted: Tensor) -> list[Tensor]:
    """Mean row_ce and accuracy [3], count int64 [3] of the counted rows of each class.

    Plain sums: they have one order on every device.
    """
    member = counted[:, None] & (classes[:, None] == torch.arange(CLASSES, device=classes.device))
    count = member.sum(0)
    some = count.clamp(min=1)
    loss = torch.where(member, row_ce[:, None], 0.0).sum(0)
    hits = (member & hit[:, None]).sum(0).to(row_ce.dtype)
    return [loss / some, hits / some, count]
