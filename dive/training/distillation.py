"""`dive.distill`: studies in, a steering adapter out."""

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from dive.adapter.adapter import SteeringAdapter
from dive.adapter.attach import attached_here, steer
from dive.backbone.gradient_checkpointing import enable_gradient_checkpointing
from dive.backbone.load import Backbone
from dive.backbone.structure import output_head
from dive.console import PlainConsole, column
from dive.data.datasets.json_lines import Skipped, check_on_error
from dive.data.language import warn_if_not_english
from dive.data.study import Study
from dive.decisive.tokens import DecisiveTokens
from dive.errors import DiveError, checks
from dive.lexicon import lexicon_version
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.prompter import DEFAULT_MAX_IMAGE_TOKENS, Prompter
from dive.radgraph import RadGraph, annotator_of
from dive.training.arguments import as_config, prepared
from dive.training.calibration import calibrate, calibration_inputs
from dive.training.checkpoints import step_of
from dive.training.config import DistillConfig, check_teacher, total_steps
from dive.training.examples import Examples
from dive.training.feature_store import check_cache
from dive.training.forecast import describe
from dive.training.image_features import image_cache
from dive.training.left_out import LeftOut, UnreadableStudy
from dive.training.progress import JsonLog, ProgressBar
from dive.training.resume import (
    NOT_IN_ADAPTERS,
    IntervalsOfNow,
    begin,
    date_before,
    describe_model,
    describe_studies,
    describe_wish,
    find_checkpoint,
    one_at_a_time,
    stopped,
    unreadable_before,
)
from dive.training.student import Student
from dive.training.survey import survey
from dive.training.teacher import Teacher, fixed_demonstrations
from dive.training.trainer import DistillTrainer
from dive.training.validation_split import split
from dive.training.workers import START, cores, deaths, loaders

log = logging.getLogger(__name__)

DEFAULT_SHOTS = 4


@one_at_a_time
@prepared
def distill(
    backbone: Backbone | Any,
    studies: Sequence[Study] | Any,
    demonstrations: int | Sequence[Study] | Any | None = None,
    config: DistillConfig | Any | None = None,
    *,
    validation: float | Sequence[Study] | Any | None = None,
    prompt: str | None = None,
    target: str = "findings",
    max_image_tokens: int | None = DEFAULT_MAX_IMAGE_TOKENS,
    template: str | Path | None = None,
    template_date: Any = None,
    processor: Any = None,
    output_dir: str | PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | None = None,
    on_error: str = "fail",
    skipped: Skipped | None = None,
) -> SteeringAdapter:
    """Distil what demonstrations do for a frozen backbone into a steering adapter.

    Args:
        backbone: from `load_backbone`, or what it takes, or a bare model together with `processor`.
            LoRA and its kin (PEFT) are at work as they are; wrappers are looked through.
        studies: with reports for `target`; what the adapter learns from. Many of them, or rows as
            dicts, or as the command line takes them: "train.jsonl", "mimic-cxr:ROOT". So may
            demonstrations and validation be given.
        demonstrations: studies that are shown to the teacher before every query; a number draws
            that many from `studies` for each query, never of the same patient. None: 4 where the
            preset runs a teacher. With a preset that runs none they are an error.
        config: a `DistillConfig`, or a dict of its fields; default `DistillConfig()`.
        validation: studies, or the share of `studies` (whole patients) that is kept apart; loss
            and accuracy by token class are logged for them.
        prompt, target, max_image_tokens, template, template_date: see `Prompter`; stored in the
            adapter, whose `generate` uses the same. The date is that of the training's first day.
        output_dir: checkpoints and `log.jsonl` go here while training. None: no checkpoints.
        resume: go on from the last whole checkpoint in `output_dir`, if there is one, with a
            warning for those that are passed over: the adapter is what an uninterrupted run gives
            (bit for bit on a CPU). Whatever decides what is learnt must be as it was; validation,
            logging, saving, workers and gradient_checkpointing may differ.
        progress: a plan before the first step and a progress bar, on stderr; None: on a terminal.
        on_error: "fail" raises at the first study that cannot be used; "skip" goes on without it
            and records it in `skipped`. Before the first step only the headers of images are read;
            one that cannot be decoded in its turn is left out of its batch, or stops the training
            with its last checkpoint whole.

    Returns:
        The adapter, on the CPU, in eval mode; its metadata says how it was made.

    Raises:
        DiveError: bad input, or another process that trains into `output_dir`, before the first
            step; a study that cannot be decoded, in its turn.
        NonFiniteLoss: in a step, with the study's id.
    """
    start = time.perf_counter()
    config = as_config(config)
    skipped = check_on_error(on_error, skipped)
    folder = None if output_dir is None else checks.path("output_dir", output_dir)
    if isinstance(config.cache_images, str):
        check_cache(config.cache_images)
    if attached_here(backbone.model):
        raise DiveError("distill: an adapter is attached to the backbone; detach it first")
    if demonstrations is not None:
        check_teacher(config)
    output_head(backbone)  # a head that cannot be used is refused before any study is read
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        adapter = SteeringAdapter(config.steering(), backbone)
    studies, held_out = split(studies, validation, config.seed)
    shots = _demonstrations(demonstrations, config, studies)
    if shots is not None and shots.count is not None:
        for study in studies:  # too few to draw from is said before any image is read
            shots.of(study)
    console = PlainConsole(stderr=True)
    rank, ranks = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    shown = rank == 0 and (console.is_terminal if progress is None else progress)

    if template_date is None and resume:
        template_date = date_before(folder)
    prompter = Prompter(
        backbone,
        prompt=prompt,
        target=target,
        max_image_tokens=max_image_tokens,
        template=template,
        template_date=template_date,
    )
    run = describe_wish(config, target, prompt, max_image_tokens)
    annotator = None if config.decisive == "lexicon" else annotator_of(config.decisive)
    run |= describe_model(prompter, adapter, annotator)
    mended = unreadable_before(folder) if resume else []
    run |= {"unreadable": mended} if mended else {}
    if on_error == "fail":  # then these are the studies: none is left out below
        run |= describe_studies(studies, held_out, shots, target, mended)
    checkpoint = find_checkpoint(folder, resume, run)
    weigher = DecisiveTokens(
        backbone.tokenizer,
        pathology=float(config.pathology_weight or 0),
        eos=float(config.eos_weight or 0),
        polarity=config.polarity,
        modifiers=config.modifiers,
        annotator=annotator,
    )
    if isinstance(annotator, RadGraph):  # a process that loads a model: once, for all reports
        weigher.prepare(_reports([*studies, *held_out], target))
    columns = (column("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("reading studies", total=len(studies) + len(held_out))
        options: dict[str, Any] = {"on_error": on_error, "skipped": skipped}
        options["step"] = lambda: bar.advance(task)
        options["workers"] = cores() if config.workers is None else config.workers
        examples, found = survey(studies, prompter, weigher, **options)
        options["purpose"] = "for validation"
        checked = survey(held_out, prompter, weigher, **options)[0] if held_out else None
    if annotator is None:
        reader = "the lexicon, by which decisive tokens are found,"
        warn_if_not_english([*_reports(examples.studies, target)], "reports", reader, stacklevel=4)
    if on_error == "skip":
        if shots is not None and shots.count is not None:
            shots = _demonstrations(shots.count, config, examples.studies)
        kept = [] if checked is None else checked.studies
        run |= describe_studies(examples.studies, kept, shots, target, mended)
        checkpoint = find_checkpoint(folder, resume, run)
    teacher = _teacher(shots, prompter, examples, on_error, skipped)
    teacher_lengths = teacher.prompt_lengths(found) if teacher is not None else None

    left_out = LeftOut(on_error, skipped)
    steps = total_steps(config, len(examples), ranks)
    try:
        if config.cache_images:
            place = None if config.cache_images is True else config.cache_images
            first = next(left_out.readable(examples))
            examples.features = image_cache(prompter, examples.studies[first.index], place)
            if checked is not None:
                checked.features = examples.features
        some = islice(left_out.readable(examples), config.calibration_studies)
        calibrate(backbone, adapter, calibration_inputs(examples, some))
        if shown:
            plan = describe(config, prompter, adapter, found, teacher_lengths, steps, ranks)
            console.print(plan, soft_wrap=True)
        if folder is not None:
            begin(folder, resume, run, checkpoint)
        adapter.metadata |= prompter.metadata()  # a checkpoint's adapter has it, too
        _train(
            backbone, adapter, config, examples, checked, teacher, left_out, steps, folder,
            checkpoint, console if shown else None,
        )  # fmt: skip
    except UnreadableStudy as error:
        # with its file made whole the training is still the same
        known = {*mended, error.study.id}
        kept = [] if checked is None else checked.studies
        again = run | describe_studies(examples.studies, kept, shots, target, known)
        raise stopped(error, folder, again, known) from None

    store = None if examples.features is None else examples.features.store
    if store is not None:
        log.info("%s", store.summary())
        if shown:
            console.print(store.summary(), soft_wrap=True)
    adapter.to("cpu").eval()
    adapter.metadata |= {
        "distillation": {
            name: value
            for name, value in run.items()
            if name not in NOT_IN_ADAPTERS and not name.startswith("template_")
        }
        | {
            "studies": len(examples) - len(examples.failed),
            "validation_studies": 0 if checked is None else len(checked) - len(checked.failed),
            "steps": steps,
            "seconds": round(time.perf_counter() - start, 1),
            "sources": _sources(examples, checked, teacher),
            "decisive_source": f"the lexicon of dive {lexicon_version()}"
            if annotator is None
            else annotator.source,
        }
    }
    return adapter


def _demonstrations(
    given: int | Sequence[Study] | None, config: DistillConfig, studies: Sequence[Study]
) -> Demonstrations | None:
    """What the teacher is shown, drawn from `studies` where a number is given; None without one."""
    if not config.needs_teacher:
        return None
    if given is None:
        given = DEFAULT_SHOTS
    if isinstance(given, int):
        redraw = config.redraw_demonstrations
        return Demonstrations(studies, given, seed=config.seed, redraw=redraw)
    return Demonstrations(given)


def _teacher(
    shots: Demonstrations | None,
    prompter: Prompter,
    examples: Examples,
    on_error: str,
    skipped: Skipped,
) -> Teacher | None:
    if shots is None:
        log.info("no teacher is run: the adapter learns from the reports alone")
        return None
    if shots.count is None:
        fixed = fixed_demonstrations(shots.pool, prompter, on_error, skipped)
        shots = Demonstrations(fixed)
    return Teacher(prompter, examples, shots)


def _train(
    backbone: Backbone,
    adapter: SteeringAdapter,
    config: DistillConfig,
    examples: Examples,
    validation: Examples | None,
    teacher: Teacher | None,
    left_out: LeftOut,
    steps: int,
    folder: Path | None,
    checkpoint: Path | None,
    console: PlainConsole | None,
) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    per_epoch = total_steps(replace(config, steps=None, epochs=1), len(examples), ranks)
    often = max(per_epoch, steps // 20)
    workers = loaders(config.workers, sum(len(one.images) for one in examples.studies))
    # Trainer makes its folder even where it has nothing to save
    scratch = tempfile.TemporaryDirectory() if folder is None else nullcontext(str(folder))
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
        logging_nan_inf_filter=False,  # a loss that is not finite stops the training instead
        eval_strategy="no" if validation is None else "steps",
        eval_steps=config.eval_steps or often,
        save_strategy="no" if folder is None else "steps",
        save_steps=config.save_steps or often,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=1 if workers else None,  # a batch each is far enough ahead
        dataloader_multiprocessing_context=START if workers else None,
        dataloader_pin_memory=False,  # batches are put together only when it is known of what
        remove_unused_columns=False,
        report_to="none",
        ddp_find_unused_parameters=False,
        use_cpu=backbone.device.type == "cpu",
        disable_tqdm=True,
    )
    # several GPUs in one process would be wrapped in DataParallel, which knows no hooks
    arguments._n_gpu = min(arguments.n_gpu, 1)
    callbacks: list[Any] = [IntervalsOfNow()]
    if console is not None:
        callbacks.append(ProgressBar(console))
    if folder is not None:
        callbacks.append(JsonLog(folder / "log.jsonl"))
    recompute = enable_gradient_checkpointing(backbone) if config.gradient_checkpointing else None
    states = torch.random.get_rng_state()
    try:
        with scratch as arguments.output_dir, steer(backbone, adapter) as attachment:
            attachment.public = False  # no other thread's forward is meant to be steered by it
            student = Student(attachment, config)
            trainer = DistillTrainer(
                student, arguments, config, examples, validation, teacher, left_out, callbacks
            )
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(ProgressCallback)
            if checkpoint is not None and step_of(checkpoint) >= steps:
                trainer.restore(checkpoint)  # Trainer would make one step more
            else:
                with deaths():
                    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    finally:
        torch.random.set_rng_state(states)  # Trainer seeds torch's global generator
        if recompute is not None:
            recompute.remove()


def _reports(studies: Sequence[Study], target: str) -> Iterator[str]:
    """The reports that there are; what lacks one is named when every study is looked at."""
    for study in studies:
        try:
            yield study.report(target)
        except DiveError:
            continue


def _sources(examples: Examples, validation: Examples | None, teacher: Teacher | None) -> list[str]:
    """The datasets from which the adapter learnt, as far as its studies say."""
    studies = [*examples.studies]
    studies += validation.studies if validation is not None else []
    studies += teacher.demonstrations.pool if teacher is not None else []
    return sorted({study.origin for study in studies if study.origin})
