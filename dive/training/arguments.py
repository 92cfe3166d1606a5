"""What `dive.distill` and `dive.generate` are given, made into what they work with.

Paths stand for what they name (a backbone's folder, a file of studies, an adapter's folder), as on
the command line; and the caller's modes (no_grad, autocast, training) are put aside meanwhile.
"""

import functools
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from dive.backbone.each_inside import each_inside
from dive.backbone.modes import held
from dive.backbone.load import Backbone, load_backbone
from dive.backbone.structure import unwrap
from dive.data.absent import told
from dive.data.datasets.json_lines import Skipped
from dive.data.open import names_studies, open_studies
from dive.data.report import PLACEHOLDERS
from dive.data.skipping import Trouble
from dive.data.study import Study
from dive.errors import DiveError, checks
from dive.training.config import DistillConfig
from dive.training.workers import check_workers

log = logging.getLogger(__name__)

T = TypeVar("T")


def as_backbone(given: Any, processor: Any = None) -> Backbone:
    """A `Backbone` of what a caller gave: one, a path or hub id, or a model with its processor.

    Its model is the one that computes, without the wrappers around it.
    """
    if checks.names_a_place(given):
        given = load_backbone(given)
    if isinstance(given, Backbone):
        processor = given.processor if processor is None else processor
    elif processor is None:
        raise DiveError(
            f"got a bare {type(given).__name__}; wants a Backbone from dive.load_backbone, "
            "or processor= too"
        )
    if checks.names_a_place(processor):
        raise DiveError(
            f"processor is {str(processor)!r}; wants a processor or tokenizer: load_backbone of a "
            "folder has both, and transformers' AutoProcessor.from_pretrained reads one"
        )
    model = unwrap(given)
    if isinstance(given, Backbone):
        return replace(given, model=model, processor=processor)
    return Backbone(model, processor)


def as_studies_of(
    given: Any,
    name: str,
    target: str | None,
    *,
    wanted: str = "a list of studies",
    on_error: str = "fail",
    skipped: Skipped | None = None,
) -> list[Study]:
    """Studies: one, many, a file or dataset as the command line names it, or rows as dicts.

    DiveError that names the argument (`name`) and what it got.
    """
    options: dict[str, Any] = {"target": target, "on_error": on_error, "skipped": skipped}
    if isinstance(given, Study):
        given = [given]
    wanted += ", or a file or dataset of them as the command line takes it"
    named = checks.names_a_place(given)
    if named and not names_studies(given) and not checks.place(name, given).exists():
        raise DiveError(f"{name} is {str(given)!r}; wants {wanted} (there is no such file)")
    if named or isinstance(given, Mapping) or hasattr(given, "column_names"):
        return list(open_studies(given, **options))
    if not isinstance(given, Iterable) or isinstance(given, (bytes, bytearray)):
        raise DiveError(f"{name} is {_what(given)}; wants {wanted}")
    found = list(given)
    if found and all(isinstance(one, Mapping) for one in found):
        return list(open_studies(found, **options))
    for number, one in enumerate(found):
        if not isinstance(one, Study):
            raise DiveError(
                f"{name} holds a {type(one).__name__}; wants studies, and item {number} is none"
            )
    return _sound(found, name, Trouble(on_error, skipped))


def _what(given: Any) -> str:
    """A number or None as it is; all else, which may hold what is private, by its kind."""
    plain = given is None or isinstance(given, (int, float))
    return repr(given) if plain else f"a {type(given).__name__}"


def _sound(studies: list[Study], name: str, trouble: Trouble) -> list[Study]:
    """Those studies whose fields are of their kind and whose id is theirs alone, as in a file."""
    kept: list[Study] = []
    first: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for number, one in enumerate(studies):
        try:
            one.check()
            if one.id in first:
                raise DiveError(
                    f"{one.where}: item {number} of {name} has the id of item {first[one.id]}; "
                    "wants every study once"
                )
        except DiveError as error:
            trouble.bad(one.id if isinstance(one.id, str) else None, one.source, error)
            continue
        first[one.id] = number
        counts.update(one.placeholders.keys())
        kept.append(one)
    if counts:
        log.warning("%s: %s taken as absent (%s)", name, told(counts), PLACEHOLDERS)
    return kept


def as_demonstrations(given: Any, target: str) -> Any:
    """None, a number of studies, or studies."""
    if given is None or checks.is_whole(given):
        return None if given is None else int(given)
    wanted = "a whole number or a list of studies"
    return as_studies_of(given, "demonstrations", target, wanted=wanted)


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


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, with nothing trainable and outside autocast; then as it was.

    PEFT leaves its layers in training mode, whose dropout would be in every state, and trainable.
    """
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise DiveError(
            "the backbone's weights were made under torch.inference_mode, so nothing can be "
            "learnt through them: load it outside"
        )
    with evaluating(model), held(model, "requires_grad", list(model.parameters())):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and outside autocast; then as it was, when no thread wants it so."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(held(model, "training", list(model.modules())))
        yield


def each_evaluating(model: nn.Module, results: Iterator[T]) -> Iterator[T]:
    """The same results; what makes each runs in eval mode, and the caller's code between does not.

    Closing it closes `results`.
    """
    return each_inside(functools.partial(evaluating, model), results)
