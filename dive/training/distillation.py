"""`dive.distill`: studies in, a steering adapter out."""

import time
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from dive.adapter.adapter import SteeringAdapter
from dive.backbone.load import Backbone
from dive.backbone.modes import at_rest
from dive.data.datasets.json_lines import Skipped
from dive.data.study import Study
from dive.errors import DiveError
from dive.prompting.prompter import DEFAULT_MAX_IMAGE_TOKENS
from dive.training.arguments import own_modes, read_inputs
from dive.training.calibration import calibrate_adapter
from dive.training.config import DistillConfig
from dive.training.fingerprint import studies_fingerprint
from dive.training.left_out import UnreadableStudy
from dive.training.loop import train
from dive.training.metadata import distillation_metadata
from dive.training.preparation import Prepared, prepare
from dive.training.request import resolve
from dive.training.resume import resumable_stop, training_folder


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
    """Distil the effect of demonstrations on a frozen backbone into a steering adapter.

    Args:
        backbone: from `load_backbone`, or an argument of it, or a bare model together with
            `processor`. LoRA and other adapters of PEFT stay active; wrappers are looked through.
        studies: to learn from, with reports for `target`: studies, or records as dicts, or a name
            as on the command line ("train.jsonl", "mimic-cxr:ROOT"). Demonstrations and validation
            may be given in the same forms.
        demonstrations: studies that the teacher is shown before every query; a number draws that
            many from `studies` for each query, never of the same patient. None: 4 where the preset
            runs a teacher. With a preset that runs none they are an error.
        config: a `DistillConfig`, or a dict of its fields; default `DistillConfig()`.
        validation: studies, or the share of `studies` (whole patients) that is held out; their loss
            and accuracy by token class are logged.
        prompt, target, max_image_tokens, template, template_date: see `Prompter`; stored in the
            adapter, so that `generate` uses the same. The date is the training's first day.
        output_dir: folder for checkpoints and `log.jsonl` during the training. None: none are
            written.
        resume: go on from the last whole checkpoint in `output_dir`, if there is one, with a
            warning for those that are passed over. The adapter is that of an uninterrupted run
            (bit for bit on a CPU). Whatever decides what is learnt must be as it was; validation,
            logging, saving, workers and gradient_checkpointing may differ.
        progress: show a forecast before the first step and a progress bar, on stderr. None: if
            that is a terminal.
        on_error: "fail" raises at the first study that cannot be used; "skip" goes on without it
            and records it in `skipped`. Before the first step only the headers of images are read;
            an image that cannot be decoded later is left out of its batch, or stops the training
            with its last checkpoint whole.

    Returns:
        The adapter, on the CPU, in eval mode, with how it was made in its metadata.

    Raises:
        DiveError: bad input, or another process that trains into `output_dir`, before the first
            step; a study that cannot be decoded, when it is its turn.
        NonFiniteLoss: the loss of a step is not finite; names the study.
    """
    with training_folder(output_dir) as folder, own_modes():
        inputs = read_inputs(
            backbone,
            studies,
            demonstrations,
            config,
            validation=validation,
            prompt=prompt,
            target=target,
            max_image_tokens=max_image_tokens,
            template=template,
            template_date=template_date,
            processor=processor,
            folder=folder,
            resume=resume,
            progress=progress,
            on_error=on_error,
            skipped=skipped,
        )
        start = time.perf_counter()
        with at_rest(inputs.backbone.model):
            prepared = prepare(resolve(inputs))
            try:
                calibrate_adapter(prepared)
                train(prepared)
            except UnreadableStudy as error:
                raise _resumable(error, prepared) from None
        adapter = prepared.request.adapter.to("cpu").eval()
        seconds = time.perf_counter() - start
        adapter.metadata["distillation"] = distillation_metadata(prepared, seconds)
    return adapter


def _resumable(error: UnreadableStudy, prepared: Prepared) -> DiveError:
    """`error`, with the checkpoint to resume from once the study's file is repaired."""
    request = prepared.request
    unreadable = {*request.unreadable, error.study.id}
    fingerprint = request.fingerprint | studies_fingerprint(
        request.selection, request.inputs.target, unreadable
    )
    return resumable_stop(error, request.inputs.folder, fingerprint, unreadable)
