"""The request for a training: everything that is decided, or refused, before an image is opened."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dive.adapter.adapter import SteeringAdapter
from dive.adapter.attach import attached_here
from dive.backbone.structure import output_head, unwrap
from dive.errors import DiveError
from dive.files.digests import of_json
from dive.prompting.prompter import Prompter
from dive.radgraph import annotator_of
from dive.training.arguments import Inputs
from dive.training.config import VISUAL
from dive.training.fingerprint import (
    model_fingerprint,
    settings_fingerprint,
    studies_fingerprint,
)
from dive.training.resume import date_before, find_checkpoint, unreadable_before
from dive.training.selection import Selection, select
from dive.training.visual_weights import IDENTITY


@dataclass(frozen=True)
class Request:
    """A training that was not refused before its images are opened.

    annotator: finds the pathology in reports; None: the lexicon does, or images do.
    unreadable: ids of studies at which an earlier part of this training stopped.
    fingerprint: without the part of the studies as long as some of them may be left out.
    checkpoint: the one to go on from.
    """

    inputs: Inputs
    adapter: SteeringAdapter
    selection: Selection
    prompter: Prompter
    annotator: Any
    unreadable: list[str]
    fingerprint: dict[str, Any]
    checkpoint: Path | None


def resolve(inputs: Inputs) -> Request:
    """Make a request of the arguments, without opening an image.

    Raises:
        DiveError: the backbone cannot be steered, or is steered already; there are too few
            studies; the prompt cannot be made; the folder holds another training.
    """
    backbone, config = inputs.backbone, inputs.config
    if attached_here(backbone.model):
        raise DiveError("distill: an adapter is attached to the backbone; detach it first")
    output_head(backbone)  # raises where the head cannot be used
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        adapter = SteeringAdapter(config.steering(), backbone)
    selection = select(inputs.studies, inputs.validation, inputs.demonstrations, config)
    date = inputs.template_date
    if date is None and inputs.resume:
        date = date_before(inputs.folder)
    prompter = Prompter(
        backbone,
        prompt=inputs.prompt,
        target=inputs.target,
        max_image_tokens=inputs.max_image_tokens,
        template=inputs.template,
        template_date=date,
    )
    listless = config.decisive in ("lexicon", VISUAL)
    annotator = None if listless else annotator_of(config.decisive)
    if config.decisive == VISUAL and not prompter.sees:
        raise DiveError(
            f"decisive is {VISUAL!r}, and {type(unwrap(backbone)).__name__} takes no images, want "
            "a vision-language model, or decisive='lexicon' or 'radgraph'"
        )
    fingerprint = settings_fingerprint(
        config, inputs.target, inputs.prompt, inputs.max_image_tokens
    ) | model_fingerprint(prompter, adapter, annotator)
    if config.decisive == VISUAL:
        fingerprint["decisive_hash"] = of_json(IDENTITY)
    unreadable = unreadable_before(inputs.folder) if inputs.resume else []
    if unreadable:
        fingerprint["unreadable"] = unreadable
    if inputs.on_error == "fail":  # none of the studies will be left out
        fingerprint |= studies_fingerprint(selection, inputs.target, unreadable)
    checkpoint = find_checkpoint(inputs.folder, inputs.resume, fingerprint)
    return Request(
        inputs, adapter, selection, prompter, annotator, unreadable, fingerprint, checkpoint
    )
