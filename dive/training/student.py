"""The student: the backbone with the adapter attached, its loss, and losses by token class."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dive import ops
from dive.adapter.adapter import SteeringAdapter
from dive.adapter.attach import Attachment, unsteered
from dive.backbone.model_lock import model_lock
from dive.backbone.structure import last_hidden_state, output_head
from dive.decisive.tokens import CLASS_NAMES
from dive.training.config import DistillConfig


class Student(nn.Module):
    """The backbone with the adapter attached, which maps a batch to the distillation loss.

    The backbone is not a submodule: Trainer moves its module, counts the parameters and calls
    `train()`, and a frozen backbone stays where it is, in eval mode.
    """

    def __init__(self, attachment: Attachment, config: DistillConfig) -> None:
        super().__init__()
        assert attachment.adapter is not None
        self.adapter: SteeringAdapter = attachment.adapter
        self._attachment = [attachment]  # in a list, so that its modules are not registered here
        self._objective = config
        self._head = output_head_of(attachment)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        positions: Tensor,
        index: Tensor,
        targets: Tensor,
        weights: Tensor,
        classes: Tensor,
        teacher_hidden: Tensor | None = None,
        normalizer: Tensor | None = None,
        kd_normalizer: Tensor | None = None,
    ) -> tuple[Tensor, ops.DecisiveLoss | None]:
        """The loss (float32 scalar) and its parts. A batch without a row has the loss 0, no parts,
        and gradients of 0: the ranks wait for each other in the backward, so there must be one.

        Args:
            inputs: model inputs, padded right. positions [B, T] bool: the N response rows; index
                [N] int64: the same as indices into the flattened batch.
            targets [N] int64, weights [N] float32, classes [N] int64: of the tokens that the rows
                predict.
            teacher_hidden [N, D]: hidden states of the teacher that predict the same tokens.
            normalizer, kd_normalizer: sums over the whole batch of the step, float32 scalars.
        """
        attachment, settings = self._attachment[0], self._objective
        if not len(index):
            each = [p.float().sum() for p in self.adapter.parameters() if p.requires_grad]
            return torch.stack([one.to(index.device) for one in each]).sum() * 0.0, None
        attachment.mask = positions if self.adapter.config.positions == "response" else None
        try:
            hidden = last_hidden_state(attachment.model, dict(inputs))
        finally:
            attachment.mask = None
        hidden = hidden.flatten(0, 1).index_select(0, index.to(hidden.device))
        # under a device_map the head may be elsewhere
        device, given = self._head.weight.device, teacher_hidden is not None
        hidden, weights = hidden.to(device), weights.to(device)
        if teacher_hidden is not None:
            teacher_hidden = teacher_hidden.to(device)
        if normalizer is not None:
            normalizer = normalizer.to(device)
        if kd_normalizer is not None:
            kd_normalizer = kd_normalizer.to(device)
        parts = ops.decisive_cross_entropy(
            hidden,
            self._head.weight,
            targets.to(device),
            weights,
            bias=self._head.bias,
            softcap=self._head.softcap,
            teacher_hidden=teacher_hidden,
            ce_weight=settings.ce_weight or 0.0,
            kd_weight=(settings.kd_weight or 0.0) if given else 0.0,
            temperature=settings.temperature,
            normalizer=normalizer,
            kd_normalizer=kd_normalizer if given else None,
            token_class=classes.to(device),
            rows=torch.arange(len(index), device=device),  # only response rows are left
            validate=False,  # LossWatch finds bad values without a host sync in every step
        )
        loss = parts.loss
        if teacher_hidden is not None and settings.align_weight:
            # a mean over the width makes the weight mean the same for every model
            apart = (hidden.float() - teacher_hidden.float()).pow(2).mean(-1)
            count = (weights > 0).sum() if kd_normalizer is None else kd_normalizer
            loss = loss + settings.align_weight * (apart * (weights > 0)).sum() / count.clamp(min=1)
        return loss, parts


def output_head_of(attachment: Attachment) -> Any:
    """The head, checked against the logits of the model without the adapter."""
    with model_lock(attachment.model), unsteered(attachment.model):
        return output_head(attachment.model)


class ClassMeter:
    """Loss and accuracy by token class, summed over forwards and ranks between two lines of log."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # [3, classes]: loss, hits, tokens

    def add(self, parts: ops.DecisiveLoss) -> None:
        assert parts.class_count is not None  # the student passes token_class
        assert parts.class_loss is not None and parts.class_accuracy is not None
        count = parts.class_count.double()
        mean = torch.stack([parts.class_loss.double(), parts.class_accuracy.double()])
        sums = torch.cat([torch.where(count > 0, mean, 0.0) * count, count[None]])
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, prefix: str = "", reduce: Any = lambda sums: sums) -> dict[str, float]:
        """The means since the last call, for the classes that occurred.

        reduce: sums a tensor [3, classes] over ranks. Every rank calls it, with zeros if it had no
            row: the others wait for it.
        """
        sums = torch.zeros(3, len(CLASS_NAMES)) if self._sums is None else self._sums
        self._sums = None
        loss, hits, count = reduce(sums).tolist()
        found = {}
        for name, a, b, n in zip(CLASS_NAMES, loss, hits, count, strict=True):
            if n:
                key = name.lower()
                found[f"{prefix}loss_{key}"] = a / n
                found[f"{prefix}accuracy_{key}"] = b / n
        return found
