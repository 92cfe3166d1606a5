"""The preparation of a training: the survey of its studies, its teacher, its number of steps."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress

from dive.data.language import warn_if_not_english
from dive.data.study import Study
from dive.decisive.tokens import DecisiveTokens
from dive.errors import DiveError
from dive.errors.console import column
from dive.prompting.demonstrations import Demonstrations
from dive.radgraph import RadGraph
from dive.training.config import VISUAL, total_steps
from dive.training.decision_share import DecisionShare, decision_share
from dive.training.examples import Examples
from dive.training.fingerprint import studies_fingerprint
from dive.training.left_out import LeftOut
from dive.training.other_images import OtherImages
from dive.training.ranks import world_size
from dive.training.request import Request
from dive.training.resume import find_checkpoint
from dive.training.selection import Selection, demonstrations_from
from dive.training.survey import Survey, survey
from dive.training.teacher import Teacher, fixed_demonstrations
from dive.training.visual_weights import EndAlone, VisualWeights
from dive.training.workers import cores, spread

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A training before its first forward.

    request: with the studies that are left, their fingerprint and the checkpoint to go on from.
    examples, validation: the studies to learn from, and those that are held out.
    visual: the weights of tokens, where images decide them.
    teacher_lengths: tokens of the teacher's longest prompt for each study.
    steps: optimiser steps of the whole training.
    decision_share: of the loss's weight, on decision tokens; None where images decide the weights,
        which are known only as the training goes on.
    """

    request: Request
    examples: Examples
    validation: Examples | None
    survey: Survey
    teacher: Teacher | None
    visual: VisualWeights | None
    teacher_lengths: list[int] | None
    left_out: LeftOut
    steps: int
    decision_share: DecisionShare | None


def prepare(request: Request) -> Prepared:
    """Survey every study's text and image headers, and make the teacher.

    Raises:
        DiveError: a study cannot be used (on_error="fail"), or none is left; a prompt is longer
            than the context; without the studies that were skipped this is another training than
            the folder's.
    """
    inputs = request.inputs
    weigher = _weigher(request)
    examples, validation, found = _look_at_studies(request, weigher)
    if inputs.config.decisive == "lexicon":
        reader = "the lexicon, by which decisive tokens are found,"
        reports = [*_reports(examples.studies, inputs.target)]
        warn_if_not_english(reports, "reports", reader, stacklevel=4)
    if inputs.on_error == "skip":
        request = _with_what_is_left(request, examples, validation)
        _fit(weigher, request)  # again, as what was skipped is not learnt from
    teacher = _teacher(request, examples)
    visual = _visual(request, teacher)
    drawn = None if visual is None else visual.images.check()
    return Prepared(
        request=request,
        examples=examples,
        validation=validation,
        survey=found,
        teacher=teacher,
        visual=visual,
        teacher_lengths=None if teacher is None else teacher.prompt_lengths(found, others=drawn),
        left_out=LeftOut(inputs.on_error, inputs.skipped),
        steps=total_steps(inputs.config, len(examples), world_size()),
        decision_share=None
        if visual is not None
        else decision_share(weigher, examples.studies, request.prompter, _workers(request)),
    )


def _weigher(request: Request) -> DecisiveTokens:
    config, selection = request.inputs.config, request.selection
    if config.pathology_weight == 1 and (
        config.decisive == VISUAL or config.decisive_unit != "mention"
    ):
        log.warning(
            "pathology_weight is 1 (preset %s): decisive %r, decisive_unit %r change no weight",
            config.preset,
            config.decisive,
            config.decisive_unit,
        )
    weigher = (EndAlone if config.decisive == VISUAL else DecisiveTokens)(
        request.inputs.backbone.tokenizer,
        pathology=float(config.pathology_weight or 0),
        eos=float(config.eos_weight or 0),
        polarity=config.polarity,
        modifiers=config.modifiers,
        annotator=request.annotator,
        unit=str(config.decisive_unit),
        class_floor=config.class_floor,
    )
    if isinstance(request.annotator, RadGraph):  # it loads a model, once for all reports
        studies = [*selection.studies, *selection.validation]
        weigher.prepare(_reports(studies, request.inputs.target))
    _fit(weigher, request)
    return weigher


def _fit(weigher: DecisiveTokens, request: Request) -> None:
    """Show the weigher the reports of the studies to learn from, and of no other."""
    if not weigher.needs_fit:
        return
    reports = []
    for text in _reports(request.selection.studies, request.inputs.target):
        try:
            weigher.prepare([text])
        except DiveError:  # without an annotation; the survey names the study
            continue
        reports.append(text)
    if reports:
        weigher.fit(reports, lambda read, texts: spread(read, texts, _workers(request)))


def _workers(request: Request) -> int:
    """The processes that read reports and the headers of images."""
    requested = request.inputs.config.workers
    return cores() if requested is None else requested


def _look_at_studies(
    request: Request, weigher: DecisiveTokens
) -> tuple[Examples, Examples | None, Survey]:
    """The examples to learn from, those for validation, and the survey of the first."""
    inputs, selection = request.inputs, request.selection
    columns = (column("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = inputs.console is None
    with Progress(*columns, console=inputs.console, transient=True, disable=hidden) as bar:
        total = len(selection.studies) + len(selection.validation)
        task = bar.add_task("reading studies", total=total)
        options: dict[str, Any] = {
            "on_error": inputs.on_error,
            "skipped": inputs.skipped,
            "step": lambda: bar.advance(task),
            "workers": _workers(request),
        }
        examples, found = survey(selection.studies, request.prompter, weigher, **options)
        validation = None
        if selection.validation:
            options["purpose"] = "for validation"
            validation, _ = survey(selection.validation, request.prompter, weigher, **options)
    return examples, validation, found


def _with_what_is_left(
    request: Request, examples: Examples, validation: Examples | None
) -> Request:
    """The request without the studies that were skipped, and with their part of the fingerprint."""
    inputs, shown = request.inputs, request.selection.demonstrations
    if shown is not None and shown.count is not None:
        shown = demonstrations_from(examples.studies, shown.count, inputs.config)
    held_out = [] if validation is None else validation.studies
    selection = Selection(examples.studies, held_out, shown)
    fingerprint = request.fingerprint | studies_fingerprint(
        selection, inputs.target, request.unreadable
    )
    checkpoint = find_checkpoint(inputs.folder, inputs.resume, fingerprint)
    return replace(request, selection=selection, fingerprint=fingerprint, checkpoint=checkpoint)


def _teacher(request: Request, examples: Examples) -> Teacher | None:
    inputs, shown = request.inputs, request.selection.demonstrations
    if shown is None:
        log.info("no teacher is run: the adapter learns from the reports alone")
        return None
    if shown.count is None:
        shown = Demonstrations(
            fixed_demonstrations(shown.pool, request.prompter, inputs.on_error, inputs.skipped)
        )
    return Teacher(request.prompter, examples, shown)


def _visual(request: Request, teacher: Teacher | None) -> VisualWeights | None:
    config = request.inputs.config
    if config.decisive != VISUAL:
        return None
    assert teacher is not None  # the settings need one
    weights = float(config.pathology_weight or 0), float(config.eos_weight or 0)
    return VisualWeights(OtherImages(teacher, config.seed), *weights)


def _reports(studies: Sequence[Study], target: str) -> Iterator[str]:
    """The reports of these studies; the survey names a study that lacks one."""
    for study in studies:
        try:
            yield study.report(target)
        except DiveError:
            continue
