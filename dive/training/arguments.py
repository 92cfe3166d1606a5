"""The arguments of `dive.distill`, read and checked.

A path stands for what it names (a backbone's folder, a file of studies), as on the command line.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dive.backbone.as_backbone import as_backbone
from dive.backbone.load import Backbone
from dive.data.datasets.json_lines import Skipped, check_on_error
from dive.data.given import as_demonstrations, as_studies_of
from dive.data.study import Study
from dive.errors import DiveError
from dive.errors.console import PlainConsole
from dive.training.config import DistillConfig, check_teacher
from dive.training.feature_store import check_cache
from dive.training.ranks import rank
from dive.training.workers import check_workers


@dataclass(frozen=True)
class Inputs:
    """The arguments of `dive.distill`, with studies and backbone read where their paths were given.

    folder: for checkpoints and the log; None: none are written.
    console: where progress is shown; None: nowhere.
    """

    backbone: Backbone
    studies: list[Study]
    demonstrations: int | list[Study] | None
    config: DistillConfig
    validation: float | list[Study] | None
    prompt: str | None
    target: str
    max_image_tokens: int | None
    template: str | Path | None
    template_date: Any
    folder: Path | None
    resume: bool
    console: PlainConsole | None
    on_error: str
    skipped: Skipped


def read_inputs(
    backbone: Any,
    studies: Any,
    demonstrations: Any,
    config: Any,
    *,
    validation: Any,
    target: str,
    processor: Any,
    progress: bool | None,
    on_error: str,
    skipped: Skipped | None,
    **others: Any,
) -> Inputs:
    """Read the studies and then the backbone that the arguments of `dive.distill` name.

    others: the arguments that `Inputs` has unchanged.

    Raises:
        DiveError: an argument is of the wrong kind, or what it names cannot be read. Bad settings
            are refused before any study is read.
    """
    config = as_config(config)
    skipped = check_on_error(on_error, skipped)
    if isinstance(config.cache_images, str):
        check_cache(config.cache_images)
    if demonstrations is not None:
        check_teacher(config)
    reading: dict[str, Any] = {"on_error": on_error, "skipped": skipped}
    return Inputs(
        studies=as_studies_of(studies, "studies", target, **reading),
        demonstrations=as_demonstrations(demonstrations, target),
        validation=_as_validation(validation, target, reading),
        backbone=as_backbone(backbone, processor),
        config=config,
        target=target,
        console=_console(progress),
        **reading,
        **others,
    )


def as_config(given: Any) -> DistillConfig:
    """A `DistillConfig`, from one, from its fields as a dict, or (None) with the default values."""
    if given is None:
        return DistillConfig()
    if isinstance(given, DistillConfig):
        check_workers(given.workers)  # it may have been made on another system
        return given
    if isinstance(given, Mapping):
        known = [field.name for field in fields(DistillConfig)]
        for name in given:
            if name not in known:
                raise DiveError(
                    f"config has {name!r}, want fields of DistillConfig: " + ", ".join(known)
                )
        return DistillConfig(**given)
    what = f"the class {given.__name__}" if isinstance(given, type) else f"{given!r}"
    raise DiveError(
        f"config is {what}, want a DistillConfig, such as DistillConfig(preset='dive'), or its "
        "fields as a dict"
    )


def _as_validation(given: Any, target: str, reading: dict[str, Any]) -> float | list[Study] | None:
    """The studies of `validation`; a share or None as it is."""
    if given is None or isinstance(given, (int, float)):
        return given
    held_out = as_studies_of(given, "validation", target, **reading)
    if not held_out:
        raise DiveError("validation is empty, want studies, a share, or None")
    return held_out


def _console(progress: bool | None) -> PlainConsole | None:
    """The console of the first rank, on stderr; by default only where that is a terminal."""
    console = PlainConsole(stderr=True)
    wanted = console.is_terminal if progress is None else progress
    return console if wanted and rank() == 0 else None


@contextmanager
def own_modes() -> Iterator[None]:
    """A context with gradients on, which restores the caller's modes and random generators.

    Trainer seeds Python's and numpy's generators; torch's own is restored where it is used.
    """
    python, of_numpy = random.getstate(), np.random.get_state()
    with torch.inference_mode(False), torch.enable_grad():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(of_numpy)
