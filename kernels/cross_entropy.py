"""What the host launches for `dive::decisive_cross_entropy`, chunk by chunk."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dive.kernels import cross_entropy_rows as kernel
from dive.kernels.cross_entropy_entries import finish, gather, prepare
from dive.kernels.launch_table import cdiv
from dive.kernels.schedule import aside, in_turns

if TYPE_CHECKING:  # the type alone: kernels know nothing of dive.ops
    from dive.ops.loss_arguments import LossArguments


def forward(
    given: "LossArguments",
    chunk_rows: int,
    buffers: int,
    gain: float,
    check: Callable[[Tensor], None] | None,
) -> tuple[Tensor, ...]:
    """The results of `dive.ops.cross_entropy_torch.forward` in a launch before the chunks, one
    after them, and for each chunk its products, a gathering of the states of each and the row pass.

    Logits are float32 whatever the inputs. It asks the device nothing: every slot of `rows` is
    computed, live or not.
    chunk_rows: slots of `rows` a chunk. buffers: of logits (`dive.kernels.schedule`).
    gain: what gradients of logits are stored times.
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
    chunks = cdiv(capacity, max(chunk_rows, 1))
    buffers = min(buffers, max(chunks, 1))
    students = [empty(chunk_rows, stride) for _ in range(buffers)]
    teachers = [empty(chunk_rows, stride) for _ in range(buffers if distils else 0)]

    def part_of(chunk: int) -> slice:
        start = chunk * chunk_rows
        return slice(start, min(start + chunk_rows, capacity))

    def held(logits: list[Tensor], chunk: int) -> Tensor:
        part = part_of(chunk)
        return logits[chunk % buffers][: part.stop - part.start]

    def make_logits(chunk: int) -> None:
        part = part_of(chunk)
        # a row that takes no part may hold anything
        states = gather(hidden, slots.index[part], slots.live[part])
        kernel.product(states, lm_head, held(students, chunk)[:, :vocab])
        if teacher_hidden is not None:
            states = gather(teacher_hidden, slots.index[part], slots.distilled[part])
            kernel.product(states, lm_head, held(teachers, chunk)[:, :vocab])

    def turn_rows(chunk: int) -> None:
        part, logits = part_of(chunk), held(students, chunk)
        lse, picked, argmax, kl = results
        kernel.turn_into_gradient(
            logits,
            held(teachers, chunk) if distils else None,
            bias,
            kernel.gradient_view(logits, vocab, dtype) if compute_grad else None,
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

    def make_states(chunk: int) -> None:
        if compute_grad:
            gradient = kernel.gradient_view(held(students, chunk), vocab, dtype)
            kernel.to_hidden(gradient, lm_head, stored[part_of(chunk)])

    where = aside(device, buffers)
    in_turns(chunks, buffers, make_logits, turn_rows, make_states, where)
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
