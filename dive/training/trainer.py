"""A `transformers.Trainer` that trains and saves the adapter alone."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from dive.adapter.adapter import SteeringAdapter
from dive.backbone.model_lock import model_lock
from dive.errors import DiveError
from dive.errors.counting import counted
from dive.files.digests import of_json
from dive.training.config import DistillConfig
from dive.training.examples import Example, Examples
from dive.training.feed import Feed, Loaded, as_they_come
from dive.training.left_out import LeftOut
from dive.training.loss_watch import LossWatch
from dive.training.student import ClassMeter, Student
from dive.training.teacher import Teacher, TeacherPrompt
from dive.training.visual_weights import VisualWeights
from dive.training.whole_checkpoints import WholeCheckpoints
from dive.training.workers import LoaderWorkers

log = logging.getLogger(__name__)
Text = TypeVar("Text", str, bytes)


class DistillTrainer(WholeCheckpoints):
    """Trainer with normalisers over the whole batch of a step, and checkpoints of the adapter."""

    def __init__(
        self,
        student: Student,
        arguments: TrainingArguments,
        config: DistillConfig,
        examples: Examples,
        validation: Examples | None,
        teacher: Teacher | None,
        visual: VisualWeights | None,
        left_out: LeftOut,
        callbacks: list[TrainerCallback],
    ) -> None:
        self._distils = teacher is not None and config.learns_from_teacher
        self._feed = Feed(examples, teacher if self._distils else None, visual)
        as_lists: Any = as_they_come
        super().__init__(
            student,
            arguments,
            data_collator=as_lists,
            train_dataset=self._feed,
            eval_dataset=None if validation is None else Feed(validation),
            callbacks=[*callbacks, _Turns(self)],
            # tells Trainer that compute_loss normalises over the accumulated batch itself
            compute_loss_func=lambda *_: None,
        )
        self.workers = LoaderWorkers()
        self._student = student
        self._config = config
        self._examples = examples
        self._validation = validation
        self._teacher = teacher
        self._visual = visual
        self._left_out = left_out
        self.nothing_to_learn = False  # whether every study of the step is left out
        self._meter = ClassMeter()
        self._watch = LossWatch(
            f". Lower the learning rate (it is {config.learning_rate}), or try dtype=float32 or "
            "bfloat16 in place of float16"
        )
        self._look_at_once = examples.prompter.backbone.device.type == "cpu"
        self._agree()

    def _agree(self) -> None:
        """Make the ranks agree on the studies. Each has surveyed them by itself, and one may have
        failed to read what the others could: then all leave that study out. With different lists
        they would make different numbers of steps, and wait for each other for ever.

        Raises:
            DiveError: on every rank, where lists, checkpoints or templates differ.
        """
        if self.args.world_size == 1:
            return
        parts = [part for part in self._parts.values() if part is not None]
        digest = of_json([[study.id for study in part.studies] for part in parts])
        starts = self._of_all_ranks([(0, str(self.args.resume_from_checkpoint))])
        if len(starts) > 1:
            raise DiveError(
                f"the ranks would go on from different checkpoints "
                f"({', '.join(name for _, name in starts)}); want an output_dir that all see"
            )
        prompter = self._examples.prompter
        mine = f"{prompter.template_hash} of {prompter.template_date}"
        days = self._of_all_ranks([(0, mine)])
        if len(days) > 1:
            raise DiveError(
                f"the ranks' chat templates render different prompts (template_hash "
                f"{' and '.join(one for _, one in days)}); give all the same template_date"
            )
        each = self._of_all_ranks([(sum(len(part) for part in parts), digest)])
        if len(each) > 1:
            counts = " and ".join(str(count) for count, _ in each)
            raise DiveError(
                f"the ranks found different studies ({counts} of them): one could not read what "
                "another could, and was to skip it; start again once all of them see the same"
            )
        for part in parts:
            for index, reason in self._of_all_ranks(sorted(part.failed.items())):
                self._left_out.add(part, index, reason)

    def get_train_dataloader(self) -> DataLoader:
        return self.workers.watch(super().get_train_dataloader())

    def get_eval_dataloader(self, *args: Any, **more: Any) -> DataLoader:
        return self.workers.watch(super().get_eval_dataloader(*args, **more))

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Do nothing: the adapter's parameters are on the devices of their layers already."""

    # The loss of a step is a mean over all its studies, over all ranks and forwards; only here are
    # they all known.
    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        loaded = [items for _, items in zip(range(num_batches), epoch_iterator, strict=False)]
        if not loaded:
            return [], None
        batches = [self._batch(items) for items in loaded]
        new = self._unreadable([one for items in loaded for one in items])
        sums = torch.stack(
            [
                torch.stack([b["weights"].double().sum(), (b["weights"] > 0).double().sum()])
                for b in batches
            ]
        ).sum(0)
        counts = torch.tensor([sum(len(b["studies"]) for b in batches), len(new)])
        sums = torch.cat([sums, counts.to(sums)])
        if self.args.world_size > 1:
            sums = self.accelerator.gather(sums.float().to(device)[None]).sum(0)
        sums = sums.float()
        # With several ranks this waits for the device: all must know before the step what one of
        # them cannot read, and in its backward they wait for each other anyway.
        used, bad = sums[2:].tolist()
        if bad:  # on any rank: all of them leave the same studies out
            for index, reason in self._of_all_ranks(new):
                self._left_out.add(self._examples, index, reason)
        self.nothing_to_learn = not used
        if self.nothing_to_learn:
            log.warning(
                "step %d: every study of its batch is left out, so it changes nothing",
                self.state.global_step + 1,
            )
        for batch in batches:
            batch["normalizer"], batch["kd_normalizer"] = sums[0], sums[1]
        return batches, None

    def _batch(self, items: Sequence[Loaded]) -> dict[str, Any]:
        """The model inputs of the studies that could be read, with their teacher's prompts."""
        good = [one for one in items if one.error is None]
        examples = [self._examples[o.index] if o.example is None else o.example for o in good]
        prompts = {one.index: one.teacher for one in good if one.teacher}
        made = Made({one.index: one for one in examples}, prompts, {})
        if self._visual is not None:
            for loaded, example in zip(good, examples, strict=True):
                if loaded.visual is None:
                    continue
                states = self._visual.compute(example, loaded.visual)
                loaded.visual = None  # five prompts with their images
                if loaded.teacher is None and self._distils:
                    made.states[loaded.index] = states
            examples = [self._visual.weighed(one) for one in examples]
        batch = self._examples.collate(examples)
        batch["made"] = made
        return batch

    def _unreadable(self, items: Sequence[Loaded]) -> list[tuple[int, str]]:
        """The studies that are found unreadable here, whatever they were read for, with reasons."""
        found: dict[int, str] = {}
        for one in items:
            if one.error is not None:
                found.setdefault(one.index, one.error)
            for shown, reason in one.bad.items():
                index = None if self._teacher is None else self._teacher.index_of(shown)
                if index is None:
                    raise DiveError(reason)
                found[index] = reason
            found |= one.bad_others
        return sorted(one for one in found.items() if one[0] not in self._examples.failed)

    def _of_all_ranks(self, entries: list[tuple[int, Text]]) -> list[tuple[int, Text]]:
        if self.args.world_size == 1:
            return entries
        each: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(each, entries)
        return sorted({entry for one in each for entry in one})

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with model_lock(self._examples.prompter.backbone):
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        inputs = dict(inputs)
        studies, lengths = inputs.pop("studies"), inputs.pop("response_lengths")
        made: Made | None = inputs.pop("made", None)
        shown = [self._examples.studies[index] for index in studies]
        if made is not None and shown:
            own = [made.examples[index].inputs for index in studies]
            inputs["inputs"] = self._examples.model_inputs(inputs["inputs"], shown, own)
            if self._teacher is not None and self._distils:
                inputs["teacher_hidden"] = self._teacher.hidden(
                    studies, self._feed.epoch, made.prompts, made.examples, made.states
                )
            for one in made.examples.values():
                self._examples.keep(one)
        loss, parts = model(**inputs)
        if shown:
            self._watch.add(f"step {self.state.global_step + 1}", shown, lengths, loss, parts)
            if self._look_at_once:
                self._watch.look()
            self._meter.add(parts)
        # the gradients of ranks are averaged, and the normalisers are sums over all of them
        # (Trainer sums losses on its own device, which under a device_map may not be the head's)
        loss = (loss * self.args.world_size).to(self.args.device)
        return (loss, parts) if return_outputs else loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Weighted cross entropy of the validation studies, and loss and accuracy by class."""
        meter, total, watch = ClassMeter(), torch.zeros(2, dtype=torch.float64), LossWatch()
        self._student.eval()
        prompter = self._examples.prompter
        loader = self.get_eval_dataloader()
        validation = self._validation
        assert validation is not None
        new: list[tuple[int, str]] = []
        with torch.no_grad():
            for items in loader:
                good = [one for one in items if one.error is None]
                new += [(one.index, one.error) for one in items if one.error is not None]
                if not good:
                    continue
                examples = [validation[o.index] if o.example is None else o.example for o in good]
                batch = validation.collate(examples)
                names = ("positions", "index", "targets", "weights", "classes")
                device = prompter.backbone.device
                rest = {name: batch[name].to(device) for name in names}
                shown = [validation.studies[index] for index in batch["studies"]]
                own = [one.inputs for one in examples]
                inputs = validation.model_inputs(batch["inputs"], shown, own)
                for one in examples:
                    validation.keep(one)
                with model_lock(prompter.backbone):
                    loss, parts = self._student(inputs, **rest)
                watch.add("validation", shown, batch["response_lengths"], loss, parts)
                meter.add(parts)
                weights = rest["weights"].to(parts.row_ce.device).double()
                total += torch.stack([(weights * parts.row_ce).sum(), weights.sum()]).cpu()
        watch.look()
        for index, reason in self._of_all_ranks(new):
            self._left_out.add(validation, index, reason)
        reduce = self._sum_over_ranks
        loss, weight = reduce(total).tolist()
        if not weight:
            count = counted(len(validation), "study")
            raise DiveError(f"no study is left for validation: {count} skipped")
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

    def share_visual(self) -> None:
        """Let every rank know the visual weights that each has computed since the last call."""
        if self._visual is not None:
            self._visual.add(self._of_all_ranks(self._visual.take_new()))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._watch.look()  # so that no checkpoint holds an adapter after a bad loss
        self.share_visual()
        super().save_model(output_dir, _internal_call)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            named = [(n, p) for n, p in self._student.named_parameters() if p.requires_grad]
            scales = [p for n, p in named if n.endswith(".scale")]
            others = [p for n, p in named if not n.endswith(".scale")]
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": others, "weight_decay": self._config.weight_decay},
                    # decay would pull the scale of a layer towards no effect
                    {"params": scales, "lr": self._config.scale_learning_rate, "weight_decay": 0.0},
                ],
                lr=self._config.learning_rate or 0.0,
            )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            self._student.adapter.save_pretrained(folder)
            self._left_out.save(folder, self._parts)
            if self._visual is not None:
                self._visual.save(folder)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        self.restore(Path(resume_from_checkpoint))

    def restore(self, checkpoint: Path) -> None:
        """Load the adapter of a checkpoint, the list of the studies that were left out, and the
        visual weights that were known."""
        saved = SteeringAdapter.from_pretrained(checkpoint)
        self._student.adapter.load_state_dict(saved.state_dict())
        self._left_out.load(checkpoint, self._parts)
        if self._visual is not None:
            self._visual.load(checkpoint)

    @property
    def _parts(self) -> dict[str, Examples | None]:
        return {"training": self._examples, "validation": self._validation}


@dataclass
class Made:
    """The examples and the teacher's prompts of a batch, by study, and those of its hidden states
    that are known already. Not a dict, which Trainer would move to the device, and with it the
    images of all demonstrations at once."""

    examples: dict[int, Example]
    prompts: dict[int, TeacherPrompt]
    states: dict[int, Tensor]


class _Turns(TrainerCallback):
    """Sets the epoch of the feed, and keeps a step without a study from moving a parameter."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer._feed.epoch = int(state.epoch or 0)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.nothing_to_learn:
            # without a gradient neither momentum nor weight decay moves a parameter
            self._trainer._student.zero_grad(set_to_none=True)
