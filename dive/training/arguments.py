"""What `dive.distill` is given, made into what it works with.

Paths stand for what they name (a backbone's folder, a file of studies), as on the command line; and
the caller's modes (no_grad, autocast, training) are put aside meanwhile.
"""

import functools
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch

from dive.backbone.as_backbone import as_backbone
from dive.backbone.modes import at_rest
from dive.data.given import as_demonstrations, as_studies_of
from dive.errors import DiveError
from dive.training.config import DistillConfig
from dive.training.workers import check_workers

T = TypeVar("T")


def as_config(given: Any) -> DistillConfig:
    """A `DistillConfig`, from one or from its settings as a dict; None has the default ones."""
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
                    f"config has {name!r}, which is no setting of DistillConfig; it knows "
                    + ", ".join(known)
                )
        return DistillConfig(**given)
    what = f"the class {given.__name__}" if isinstance(given, type) else f"{given!r}"
    raise DiveError(
        f"config is {what}; wants a DistillConfig, such as DistillConfig(preset='dive'), or its "
        "settings as a dict"
    )


def prepared(run: Callable[..., T]) -> Callable[..., T]:
    """Around `distill(backbone, studies, ...)`: it gets what it works with, in a mode of its own.

    Gradients are on and autocast is off whatever the caller's modes are, and the backbone is in
    eval mode with nothing trainable; all is as it was afterwards.
    """

    @functools.wraps(run)
    def with_prepared(
        backbone: Any, studies: Any, demonstrations: Any = None, config: Any = None, **more: Any
    ) -> T:
        with torch.inference_mode(False), torch.enable_grad():
            config = as_config(config)
            target = more.get("target", "findings")
            reading: dict[str, Any] = {"on_error": more.get("on_error", "fail")}
            reading["skipped"] = more.get("skipped")
            studies = as_studies_of(studies, "studies", target, **reading)
            demonstrations = as_demonstrations(demonstrations, target)
            validation = more.get("validation")
            if validation is not None and not isinstance(validation, (int, float)):
                held_out = as_studies_of(validation, "validation", target, **reading)
                if not held_out:
                    raise DiveError("validation is empty; wants studies, a share, or None")
                more["validation"] = held_out
            backbone = as_backbone(backbone, more.pop("processor", None))
            with at_rest(backbone.model), _same_draws():
                return run(backbone, studies, demonstrations, config, **more)

    return with_prepared


@contextmanager
def _same_draws() -> Iterator[None]:
    """Python's and numpy's generators as the caller had them: Trainer seeds them all. (torch's own
    is put back where it is used.)"""
    python, of_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)
