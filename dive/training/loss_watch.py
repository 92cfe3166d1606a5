"""Losses that are not finite, and their causes, found without a host sync in every step.

The loss of a bad value is NaN, and a status word on the device names the value (see
`dive.ops.checks`). Both are read when the trainer logs, evaluates or saves; on a CPU, where a read
costs nothing, after every forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dive.data.study import Study
from dive.errors import DiveError, NonFiniteLoss
from dive.ops.checks import violation
from dive.reference import DecisiveLoss


@dataclass
class _Forward:
    when: str
    studies: Sequence[Study]
    response_lengths: Sequence[int]  # tokens of each study's response
    loss: Tensor
    status: Tensor | None
    terms: list[Tensor]  # [N], one per row


class LossWatch:
    """The numbers per row of each forward, kept until `look`."""

    def __init__(self, remedy: str = "") -> None:
        self._remedy = remedy
        self._pending: list[_Forward] = []

    def add(
        self,
        when: str,
        studies: Sequence[Study],
        response_lengths: Sequence[int],
        loss: Tensor,
        parts: DecisiveLoss,
    ) -> None:
        """Keep the numbers of a forward over `studies`, whose rows lie one after the other."""
        # not `parts` itself, whose loss would keep the graph
        terms = [term for term in (parts.row_ce, parts.row_kl) if term is not None]
        self._pending.append(
            _Forward(when, studies, response_lengths, loss.detach(), parts.status, terms)
        )

    def look(self) -> None:
        """Check the forwards since the last call, with one host sync.

        Raises:
            DiveError: a bad value; names the step, study, argument, row and value of the first.
            NonFiniteLoss: a loss is not finite without one; names step and studies.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        losses = torch.stack([one.loss.double() for one in pending])
        words = [one.status for one in pending]
        status = torch.stack([losses.new_zeros(3) if w is None else w for w in words])
        read = torch.cat([losses[:, None], status], 1).tolist()
        for one, (loss, *word) in zip(pending, read, strict=True):
            fault = violation(word)
            if fault is not None:
                raise DiveError(f"{one.when}, {_names(_of_row(one, int(word[1])))}: {fault}")
            if not abs(loss) < float("inf"):
                raise NonFiniteLoss(
                    f"the loss is not a finite number in {one.when}: {_names(_bad(one))}"
                    f"{self._remedy}"
                )


def _owner(one: _Forward) -> Tensor:
    return torch.repeat_interleave(
        torch.arange(len(one.studies)), torch.tensor(one.response_lengths)
    )


def _of_row(one: _Forward, row: int) -> list[Study]:
    owner = _owner(one)
    return [one.studies[int(owner[row])]] if row < len(owner) else list(one.studies)


def _bad(one: _Forward) -> list[Study]:
    """The studies with terms that are not finite; all of them where no row's term is the cause."""
    bad = ~torch.stack(one.terms).isfinite().all(0)
    found = dict.fromkeys(_owner(one)[bad.cpu()].tolist())
    return [one.studies[index] for index in found] or list(one.studies)


def _names(studies: Sequence[Study]) -> str:
    return ", ".join(study.where for study in studies)
