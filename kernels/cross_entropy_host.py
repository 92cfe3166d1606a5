"""What the host launches for `dive::decisive_cross_entropy`, chunk by chunk."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dive.kernels import cross_entropy as kernel
from dive.kernels.bookkeeping import finish, gather, prepare

if TYPE_CHECKING:  # the type alone: kernels know nothing of dive.ops
    from dive.ops.loss_arguments import LossArguments


def forward(
    given: "LossArguments", chunk_rows: int, gain: float, check: Callable[[Tensor], None] | None
) -> tuple[Tensor, ...]:
    """The results of `dive.ops.cross_entropy_torch.forward` in a launch before the chunks, one
    after them, and for each chunk its products, a gathering of the states of each and the row pass.

    Logits are float32 whatever the inputs. It asks the device nothing: every slot of `rows` is
    computed, live or not.
    chunk_rows: slots of `rows` a chunk. gain: what gradients of logits are stored times.
    check: gets the status (float64 [3], on the device) of the arguments before the first chunk.
    """
    hidden, lm_head, rows, weights = given.hidden, given.lm_head, given.rows, given.weights
    teacher_hidden, kd_weights, compute_grad = (
        given.teacher_hidden, given.kd_weights, given.compute_grad
    )  # fmt: skip
    vocab, width = lm_head.shape
    device, dtype, capacity = hidden.device, hidden.dtype, rows.shape[0]
    distils = teacher_hidden is not None
    bias = None if given.bias is None else given.bias.contiguous()
    slots = prepare(
        given.targets,
        weights,
        rows,
        kd_weights,
        given.normalizer,
        given.kd_normalizer,
        distils,
        given.ce_weight,
        given.kd_weight,
        given.temperature,
        given.reduction == "mean",
        gain,
        vocab,
    )
    if check is not None:
        check(slots.status)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    results = empty(capacity), empty(capacity), empty(capacity, dtype=torch.int64), empty(capacity)
    stored = empty(capacity if compute_grad else 0, width, dtype=dtype)
    stride = kernel.row_stride(vocab)
    student = empty(chunk_rows, stride)
    teacher = empty(chunk_rows, stride) if distils else None
    for start in range(0, capacity, max(chunk_rows, 1)):
        part = slice(start, min(start + chunk_rows, capacity))
        index, count = slots.index[part], part.stop - part.start
        logits = student[:count]
        # a row that takes no part may hold anything
        states = gather(hidden, index, slots.live[part])
        kernel.product(states, lm_head, logits[:, :vocab])
        logits_teacher = None
        if teacher_hidden is not None and teacher is not None:
            logits_teacher = teacher[:count]
            states = gather(teacher_hidden, index, slots.distilled[part])
            kernel.product(states, lm_head, logits_teacher[:, :vocab])
        gradient = kernel.gradient_view(logits, vocab, dtype) if compute_grad else None
        lse, picked, argmax, kl = results
        kernel.turn_into_gradient(
            logits,
            logits_teacher,
            bias,
            gradient,
            slots.target[part],
            slots.labelled[part],
            slots.ce[part],
            slots.kd[part],
            slots.distilled[part],
            (lse[part], picked[part], argmax[part], kl[part]),
            vocab,
            given.softcap,
            given.temperature,
        )
        if gradient is not None:
            kernel.to_hidden(gradient, lm_head, stored[part])
    outputs = finish(
        slots,
        results,
        weights,
        kd_weights,
        given.token_class,
        distils,
        given.temperature,
        centred=given.reduction == "mean" and given.normalizer is None,
        by_row=given.reduction == "none",
    )
    return (*outputs[:-1], slots.status, stored, slots.scale, outputs[-1])
