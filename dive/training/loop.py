"""The steps of a training: transformers' Trainer around the student."""

import logging
import tempfile
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments

from dive.adapter.attach import steer
from dive.backbone.gradient_checkpointing import enable_gradient_checkpointing
from dive.training.checkpoints import step_of
from dive.training.config import total_steps
from dive.training.forecast import forecast_text
from dive.training.preparation import Prepared
from dive.training.progress import JsonLog, ProgressBar
from dive.training.ranks import world_size
from dive.training.resume import begin_in
from dive.training.student import Student
from dive.training.trainer import DistillTrainer
from dive.training.workers import START_METHOD, loaders, worker_deaths

log = logging.getLogger(__name__)


def train(prepared: Prepared) -> None:
    """Train the adapter in place, from the checkpoint on if there is one.

    Raises:
        UnreadableStudy: a study cannot be decoded, and none is to be skipped.
        NonFiniteLoss: the loss of a step is not finite.
        DiveError: the folder cannot be written, or a worker died.
    """
    request = prepared.request
    inputs, adapter = request.inputs, request.adapter
    if inputs.console is not None:
        inputs.console.print(forecast_text(prepared), soft_wrap=True)
    if inputs.folder is not None:
        begin_in(inputs.folder, inputs.resume, request.fingerprint, request.checkpoint)
    adapter.metadata |= request.prompter.metadata()  # checkpoints have it, too
    _make_steps(prepared)
    features = prepared.examples.features
    if features is not None and features.store is not None:
        summary = features.store.summary()
        log.info("%s", summary)
        if inputs.console is not None:
            inputs.console.print(summary, soft_wrap=True)


def _make_steps(prepared: Prepared) -> None:
    request = prepared.request
    inputs, checkpoint = request.inputs, request.checkpoint
    backbone, folder = inputs.backbone, inputs.folder
    arguments = _training_arguments(prepared)
    # Trainer makes its folder even where it has nothing to save
    scratch = tempfile.TemporaryDirectory() if folder is None else nullcontext(str(folder))
    on = inputs.config.gradient_checkpointing
    recompute = enable_gradient_checkpointing(backbone) if on else None
    states = torch.random.get_rng_state()
    try:
        with scratch as arguments.output_dir, steer(backbone, request.adapter) as attachment:
            attachment.public = False  # forwards of other threads are not steered by it
            trainer = DistillTrainer(
                Student(attachment, inputs.config),
                arguments,
                inputs.config,
                prepared.examples,
                prepared.validation,
                prepared.teacher,
                prepared.visual,
                prepared.left_out,
                _callbacks(prepared),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(ProgressCallback)
            if checkpoint is not None and step_of(checkpoint) >= prepared.steps:
                trainer.restore(checkpoint)  # Trainer would run one step more
            else:
                with worker_deaths(), closing(trainer.workers):
                    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
                trainer.share_visual()
    finally:
        torch.random.set_rng_state(states)  # Trainer seeds torch's global generator
        if recompute is not None:
            recompute.remove()


def _callbacks(prepared: Prepared) -> list[TrainerCallback]:
    inputs = prepared.request.inputs
    callbacks: list[TrainerCallback] = [PresentIntervals()]
    if inputs.console is not None:
        callbacks.append(ProgressBar(inputs.console))
    if inputs.folder is not None:
        callbacks.append(JsonLog(inputs.folder / "log.jsonl"))
    return callbacks


def _training_arguments(prepared: Prepared) -> TrainingArguments:
    inputs, checkpoint = prepared.request.inputs, prepared.request.checkpoint
    config, examples, steps = inputs.config, prepared.examples, prepared.steps
    per_epoch = total_steps(replace(config, steps=None, epochs=1), len(examples), world_size())
    interval = max(per_epoch, steps // 20)
    workers = loaders(config.workers, sum(len(one.images) for one in examples.studies))
    arguments = TrainingArguments(
        resume_from_checkpoint=None if checkpoint is None else str(checkpoint),
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        lr_scheduler_type="cosine",
        warmup_steps=round(config.warmup * steps),
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,  # LossWatch stops the training instead
        eval_strategy="no" if prepared.validation is None else "steps",
        eval_steps=config.eval_steps or interval,
        save_strategy="no" if inputs.folder is None else "steps",
        save_steps=config.save_steps or interval,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=1 if workers else None,  # one batch per worker is enough
        dataloader_multiprocessing_context=START_METHOD if workers else None,
        dataloader_pin_memory=False,  # the trainer collates batches
        remove_unused_columns=False,
        report_to="none",
        ddp_find_unused_parameters=False,
        use_cpu=inputs.backbone.device.type == "cpu",
        disable_tqdm=True,
    )
    # Trainer would wrap several GPUs of one process in DataParallel, which ignores hooks
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class PresentIntervals(TrainerCallback):
    """Applies the intervals of logging, evaluation and saving that are set now in place of those in
    the checkpoint; and ends the interval of the log at every checkpoint, so that a resumed training
    does not begin in the middle of one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = control.should_log or control.should_save
