"""One training step, and a `transformers.Trainer` that trains and saves the adapter alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from dive import ops
from dive.adapter import SteeringAdapter
from dive.attach import Attachment
from dive.decisive import CLASS_NAMES
from dive.examples import Examples
from dive.loss_watch import LossWatch
from dive.presets import DistillConfig
from dive.structure import last_hidden_state, output_head
from dive.teacher import Teacher


class Student(nn.Module):
    """Backbone with the adapter attached: a batch in, the distillation loss out.

    The backbone is not a submodule: Trainer calls `train()`, moves and counts what it is given, and
    a frozen backbone stays where it is, in eval mode.
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
    ) -> tuple[Tensor, ops.DecisiveLoss]:
        """Loss (float32 scalar) and its parts.

        Args:
            inputs: model inputs, padded right. positions [B, T] bool: the N response rows; index
                [N] int64: the same as places in the flattened batch.
            targets [N], weights [N] float32, classes [N]: of the tokens that the rows predict.
            teacher_hidden [N, D]: of the teacher, predicting the same tokens.
            normalizer, kd_normalizer: sums over the whole batch of the step, float32 scalars.
        """
        attachment, settings = self._attachment[0], self._objective
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
            rows=torch.arange(len(index), device=device),  # the collator left only response rows
            validate=False,  # LossWatch tells what was bad, without a host sync in every step
        )
        loss = parts.loss
        if teacher_hidden is not None and settings.align_weight:
            # mean over the width, so that the weight means the same for every model
            apart = (hidden.float() - teacher_hidden.float()).pow(2).mean(-1)
            count = (weights > 0).sum() if kd_normalizer is None else kd_normalizer
            loss = loss + settings.align_weight * (apart * (weights > 0)).sum() / count.clamp(min=1)
        return loss, parts


def output_head_of(attachment: Attachment) -> Any:
    """The head, checked against the bare model's logits: the adapter is off meanwhile."""
    enabled, attachment.enabled = attachment.enabled, False
    try:
        return output_head(attachment.model)
    finally:
        attachment.enabled = enabled


class ClassMeter:
    """Loss and accuracy of the tokens of each class, summed up between two lines of log."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # [3, classes]: loss, hits, tokens

    def add(self, parts: ops.DecisiveLoss) -> None:
        assert parts.class_count is not None  # the student passes token_class
        assert parts.class_loss is not None and parts.class_accuracy is not None
        count = parts.class_count.double()
        mean = torch.stack([parts.class_loss.double(), parts.class_accuracy.double()])
        rows = torch.cat([torch.where(count > 0, mean, 0.0) * count, count[None]])
        self._sums = rows if self._sums is None else self._sums + rows

    def take(self, prefix: str = "", reduce: Any = lambda sums: sums) -> dict[str, float]:
        if self._sums is None:
            return {}
        loss, hits, count = reduce(self._sums).tolist()
        self._sums = None
        found = {}
        for name, a, b, n in zip(CLASS_NAMES, loss, hits, count, strict=True):
            if n:
                key = name.lower()
                found[f"{prefix}loss_{key}"] = a / n
                found[f"{prefix}accuracy_{key}"] = b / n
        return found


class DistillTrainer(Trainer):
    """Trainer with normalisers over the whole batch of a step, and checkpoints of the adapter."""

    def __init__(
        self,
        student: Student,
        arguments: TrainingArguments,
        config: DistillConfig,
        examples: Examples,
        validation: Examples | None,
        teacher: Teacher | None,
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(
            student,
            arguments,
            data_collator=examples.collate,
            train_dataset=examples,
            eval_dataset=validation,
            callbacks=callbacks,
            # says that compute_loss normalises over the accumulated batch itself
            compute_loss_func=lambda *_: None,
        )
        self._student = student
        self._config = config
        self._examples = examples
        self._teacher = teacher
        self._meter = ClassMeter()
        self._watch = LossWatch(
            f". Lower the learning rate (it is {config.learning_rate}), or try dtype=float32 or "
            "bfloat16 in place of float16"
        )
        self._look_at_once = examples.prompter.backbone.device.type == "cpu"

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Adapter parameters are beside their layers already, wherever a device_map put those."""

    # The loss of a step is a mean over all its studies, on however many ranks and in however many
    # forwards they run; only here are they all at hand.
    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        batches = []
        for _, batch in zip(range(num_batches), epoch_iterator, strict=False):
            batches.append(batch)
        if not batches:
            return batches, None
        sums = torch.stack(
            [
                torch.stack([b["weights"].double().sum(), (b["weights"] > 0).double().sum()])
                for b in batches
            ]
        ).sum(0)
        if self.args.world_size > 1:
            sums = self.accelerator.gather(sums.float().to(device)[None]).sum(0)
        sums = sums.float()
        for batch in batches:
            batch["normalizer"], batch["kd_normalizer"] = sums[0], sums[1]
        return batches, None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        inputs = dict(inputs)
        studies, rows = inputs.pop("studies"), inputs.pop("rows")
        shown = [self._examples.studies[index] for index in studies]
        inputs["inputs"] = self._examples.model_inputs(inputs["inputs"], shown)
        if self._teacher is not None:
            epoch = int(self.state.epoch or 0)
            inputs["teacher_hidden"] = self._teacher.hidden(studies, epoch)
        loss, parts = model(**inputs)
        self._watch.add(f"step {self.state.global_step + 1}", shown, rows, loss, parts)
        if self._look_at_once:
            self._watch.look()
        self._meter.add(parts)
        # the gradients of ranks are averaged, and the normalisers are sums over all of them
        # (Trainer adds losses up on its own device, under a device_map not always the head's)
        loss = (loss * self.args.world_size).to(self.args.device)
        return (loss, parts) if return_outputs else loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Weighted cross entropy of the validation studies, and loss and accuracy by class."""
        meter, total, watch = ClassMeter(), torch.zeros(2, dtype=torch.float64), LossWatch()
        self._student.eval()
        prompter = self._examples.prompter
        loader = self.get_eval_dataloader()
        validation = self.eval_dataset
        assert isinstance(validation, Examples)
        with torch.no_grad():
            for batch in loader:
                names = ("positions", "index", "targets", "weights", "classes")
                device = prompter.backbone.device
                rest = {name: batch[name].to(device) for name in names}
                shown = [validation.studies[index] for index in batch["studies"]]
                inputs = validation.model_inputs(batch["inputs"], shown)
                loss, parts = self._student(inputs, **rest)
                watch.add("validation", shown, batch["rows"], loss, parts)
                meter.add(parts)
                weights = rest["weights"].to(parts.row_ce.device).double()
                total += torch.stack([(weights * parts.row_ce).sum(), weights.sum()]).cpu()
        watch.look()
        reduce = self._sum_over_ranks
        loss, weight = reduce(total).tolist()
        prefix = f"{metric_key_prefix}_"
        metrics = {f"{prefix}loss": loss / weight, **meter.take(prefix, reduce)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _sum_over_ranks(self, sums: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return sums
        gathered = self.accelerator.gather(sums.float().to(self.args.device)[None])
        return gathered.sum(0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._watch.look()
        if "loss" in logs:
            logs |= self._meter.take(reduce=self._sum_over_ranks)
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._watch.look()  # no checkpoint holds an adapter that a bad loss has spoilt
        super().save_model(output_dir, _internal_call)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            named = [(n, p) for n, p in self._student.named_parameters() if p.requires_grad]
            scales = [p for n, p in named if n.endswith(".scale")]
            others = [p for n, p in named if not n.endswith(".scale")]
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": others, "weight_decay": self._config.weight_decay},
                    # decay would pull the one scale of a layer towards no effect
                    {"params": scales, "lr": self._config.scale_learning_rate, "weight_decay": 0.0},
                ],
                lr=self._config.learning_rate or 0.0,
            )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            self._student.adapter.save_pretrained(output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        saved = SteeringAdapter.from_pretrained(Path(resume_from_checkpoint))
        self._student.adapter.load_state_dict(saved.state_dict())
