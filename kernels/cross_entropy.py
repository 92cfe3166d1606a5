"""The host side of the Triton path of `dive::decisive_cross_entropy`, chunk by chunk."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dive.kernels import cross_entropy_rows as kernel
from dive.kernels.cross_entropy_entries import LossEntries, finish, gather, prepare
from dive.kernels.launch_table import cdiv
from dive.kernels.schedule import in_turns, row_pass_stream

if TYPE_CHECKING:  # only for the type: kernels do not import dive.ops
    from dive.ops.loss_arguments import LossArguments


def forward(
    given: "LossArguments",
    chunk_rows: int,
    buffers: int,
    gradient_scale: float,
    check: Callable[[Tensor], None] | None,
) -> tuple[Tensor, ...]:
    """Computes the results of `dive.ops.cross_entropy_torch.forward`.

    One launch precedes the chunks and one follows them; each chunk has a gather and a product for
    the logits of student and teacher, the row pass, and a product for the states. Logits are
    float32 whatever the inputs. There is no host sync: every entry of `rows` is computed, live or
    not.
    chunk_rows: entries of `rows` per chunk. buffers: of logits (`dive.kernels.schedule`).
    gradient_scale: the factor by which gradients of logits are stored.
    check: receives the status (float64 [3], on the device) of the arguments before the first chunk.
    """
    weights, kd_weights, mean = given.weights, given.kd_weights, given.reduction == "mean"
    distils = given.teacher_hidden is not None
    entries = prepare(
        given.targets,
        weights,
        given.rows,
        kd_weights,
        given.normalizer,
        given.kd_normalizer,
        distils,
        given.ce_weight,
        given.kd_weight,
        given.temperature,
        mean,
        gradient_scale,
        given.lm_head.shape[0],
    )
    if check is not None:
        check(entries.status)
    chunks = Chunks(given, entries, chunk_rows, buffers)
    chunks.run()
    outputs = finish(
        entries,
        chunks.results,
        weights,
        kd_weights,
        given.token_class,
        distils,
        given.temperature,
        centred=mean and given.normalizer is None,
        by_row=given.reduction == "none",
    )
    return (*outputs[:-1], entries.status, chunks.stored, entries.scale, outputs[-1])


class Chunks:
    """The three steps of every chunk of entries: logits, row pass, states.

    results: lse, picked, argmax, kl of the entries. stored: their gradients with respect to the
    states, [0, D] without gradients.
    """

    def __init__(
        self, given: "LossArguments", entries: LossEntries, chunk_rows: int, buffers: int
    ) -> None:
        self.given, self.entries, self.chunk_rows = given, entries, chunk_rows
        self.bias = None if given.bias is None else given.bias.contiguous()
        self.vocab, width = given.lm_head.shape
        capacity, device = given.rows.shape[0], given.hidden.device

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        lse, picked, kl = empty(capacity), empty(capacity), empty(capacity)
        self.results = lse, picked, empty(capacity, dtype=torch.int64), kl
        self.stored = empty(capacity if given.compute_grad else 0, width, dtype=given.hidden.dtype)
        stride = kernel.row_stride(self.vocab)
        self.count = cdiv(capacity, max(chunk_rows, 1))
        self.buffers = min(buffers, max(self.count, 1))
        teachers = 0 if given.teacher_hidden is None else self.buffers
        self.students = [empty(chunk_rows, stride) for _ in range(self.buffers)]
        self.teachers = [empty(chunk_rows, stride) for _ in range(teachers)]

    def run(self) -> None:
        stream = row_pass_stream(self.given.hidden.device, self.buffers)
        in_turns(
            self.count, self.buffers, self.make_logits, self.pass_rows, self.make_states, stream
        )

    def part(self, chunk: int) -> slice:
        """Returns the entries of a chunk."""
        start = chunk * self.chunk_rows
        return slice(start, min(start + self.chunk_rows, self.given.rows.shape[0]))

    def buffer(self, logits: list[Tensor], chunk: int) -> Tensor:
        """Returns the buffer of a chunk's logits, with as many rows as it has entries."""
        part = self.part(chunk)
        return logits[chunk % self.buffers][: part.stop - part.start]

    def make_logits(self, chunk: int) -> None:
        part, entries, given = self.part(chunk), self.entries, self.given
        # a row that takes no part may hold anything
        states = gather(given.hidden, entries.index[part], entries.live[part])
        kernel.product(states, given.lm_head, self.buffer(self.students, chunk)[:, : self.vocab])
        if given.teacher_hidden is not None:
            states = gather(given.teacher_hidden, entries.index[part], entries.distilled[part])
            logits = self.buffer(self.teachers, chunk)[:, : self.vocab]
            kernel.product(states, given.lm_head, logits)

    def pass_rows(self, chunk: int) -> None:
        part, entries, given = self.part(chunk), self.entries, self.given
        logits = self.buffer(self.students, chunk)
        lse, picked, argmax, kl = self.results
        kernel.turn_into_gradient(
            logits,
            self.buffer(self.teachers, chunk) if self.teachers else None,
            self.bias,
            self._gradient(logits) if given.compute_grad else None,
            entries.target[part],
            entries.labelled[part],
            entries.ce[part],
            entries.kd[part],
            entries.distilled[part],
            (lse[part], picked[part], argmax[part], kl[part]),
            self.vocab,
            given.softcap,
            given.temperature,
        )

    def make_states(self, chunk: int) -> None:
        if self.given.compute_grad:
            gradient = self._gradient(self.buffer(self.students, chunk))
            kernel.to_hidden(gradient, self.given.lm_head, self.stored[self.part(chunk)])

    def _gradient(self, logits: Tensor) -> Tensor:
        return kernel.gradient_view(logits, self.vocab, self.given.hidden.dtype)
