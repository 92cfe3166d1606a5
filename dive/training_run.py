"""What makes two trainings one, and where an unfinished one goes on."""

import hashlib
import json
import logging
import operator
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import TrainerCallback

from dive.adapter import SteeringAdapter
from dive.checkpoints import checkpoints_in, last_whole, put_aside, remove_all
from dive.data.images import LazyImage
from dive.data.io import write_text
from dive.data.study import Study
from dive.errors import DiveError
from dive.presets import DistillConfig
from dive.private import public_source
from dive.prompting import DEFAULT_PROMPTS, Prompter
from dive.radgraph import parse_source
from dive.teacher import Demonstrations
from dive.templates import difference

log = logging.getLogger(__name__)

RUN_FILE = "run.json"

# How a training runs and is watched: none of it reaches the adapter, so it may differ before and
# after an interruption.
_FREE = {
    "logging_steps", "eval_steps", "save_steps", "workers", "gradient_checkpointing",
    "validation_hash",
}  # fmt: skip


def describe_wish(
    config: DistillConfig, target: str, prompt: str | None, max_image_tokens: int | None
) -> dict[str, Any]:
    """What is known of a training before the backbone or any study is read; JSON values only."""
    return {
        # where features are kept changes nothing, and where files lie is nobody else's business
        "config": asdict(config)
        | {"cache_images": bool(config.cache_images), "decisive": public_source(config.decisive)},
        "annotations_hash": _annotations(config.decisive),
        "prompt": DEFAULT_PROMPTS.get(target) if prompt is None else prompt,
        "target": target,
        "max_image_tokens": max_image_tokens,
    }


def _annotations(decisive: str) -> str | None:
    """Names the content of a file of annotations."""
    if decisive == "lexicon":
        return None
    kind, what = parse_source(decisive)
    if kind != "file":
        return None
    try:
        with open(what, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise DiveError(f"cannot read the annotations {what}: {error.strerror}") from error


def describe_model(prompter: Prompter, adapter: SteeringAdapter) -> dict[str, Any]:
    """What is known of it with the backbone."""
    tuners = adapter.metadata["weights"]["tuner_samples"]
    return {
        "backbone": adapter.metadata["backbone"],
        **prompter.template.metadata(),
        "peft_hash": None if tuners is None else hashlib.sha256(tuners.encode()).hexdigest()[:16],
    }


def describe_studies(
    studies: Sequence[Study],
    validation: Sequence[Study],
    demonstrations: Demonstrations | None,
    target: str,
    mended: Collection[str] = (),
) -> dict[str, Any]:
    """What is known of it with the studies. DiveError where one lacks a report.

    mended: ids of studies whose image files may be others than they were.
    """

    def digest(studies: Sequence[Study]) -> str:
        parts = [
            [study.id, study.report(target), study.indication or "", study.patient or ""]
            + [_name_of(image, study.id in mended) for image in study.images]
            for study in studies
        ]
        return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()[:16]

    shown, learnt = demonstrations, digest(studies)
    if shown is None:
        pool = None
    elif len(shown.pool) == len(studies) and all(map(operator.is_, shown.pool, studies)):
        pool = learnt  # drawn from the studies themselves; a digest of many takes seconds
    else:
        pool = digest(shown.pool)
    return {
        "studies_hash": learnt,
        "validation_hash": digest(validation) if validation else None,
        "demonstrations": None if shown is None else shown.count or len(shown.pool),
        "demonstrations_hash": pool,
    }


def _name_of(image: Path | Image.Image | LazyImage, mended: bool) -> str:
    """An image, well enough to see that it was exchanged: a file by name and size, for reading
    200,000 films would take hours."""
    if mended:
        return image.name if isinstance(image, Path) else "an image"
    if isinstance(image, Image.Image):
        return hashlib.sha256(image.tobytes()).hexdigest()
    if isinstance(image, Path) and image.is_file():
        return f"{image.name} {image.stat().st_size}"
    return str(image)


def find_checkpoint(folder: Path | None, resume: bool, run: dict[str, Any]) -> Path | None:
    """The last whole checkpoint to go on from, after checking that it belongs to this training.

    `run` is a description, or as much of one as is known by now: to be asked as early as possible,
    and again when more is known.
    """
    if folder is None:
        if resume:
            raise DiveError("distill: resume wants output_dir, where the checkpoints are")
        return None
    if not checkpoints_in(folder):
        return None
    if not resume:
        raise DiveError(
            f"{folder}: holds the checkpoints of an unfinished training; resume it, delete them, "
            "or choose another folder"
        )
    try:
        earlier = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DiveError(
            f"{folder}: its {RUN_FILE} cannot be read, so the unfinished training cannot go on; "
            "delete the folder to start again"
        ) from error
    differing = _differences(earlier, json.loads(json.dumps(run)))
    if not differing and run.get("template_date") and "template_date" not in earlier:
        raise DiveError(
            f"{folder}: the chat template prints the date, and the unfinished training does not "
            "say which one its prompts had: it cannot go on to the same adapter; delete its "
            "checkpoints to start again"
        )
    if differing:
        raise DiveError(
            f"{folder}: the unfinished training had {', '.join(differing)}; it cannot go on from "
            "there"
        )
    return last_whole(folder)[0]


def begin(folder: Path, resume: bool, run: dict[str, Any], checkpoint: Path | None) -> None:
    """A folder for the checkpoints of a training that starts or goes on from `checkpoint`, with
    its description. Says which checkpoints are passed over; they lose their names."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if int(os.environ.get("RANK", 0)) > 0:
            return
        whole, passed = last_whole(folder)
        for one, harm in passed:
            log.warning("%s is not whole (%s) and is passed over", one, harm)
            put_aside(one)
        if checkpoint is None:
            if resume:
                log.warning("%s: has no checkpoint to resume; the training starts anew", folder)
            write_text(folder / RUN_FILE, json.dumps(run, indent=1) + "\n")
        elif passed:
            log.warning("the training goes on from %s", whole)
    except OSError as error:
        raise DiveError(f"cannot write into {folder}: {error.strerror}") from error


def unreadable_before(folder: Path | None) -> list[str]:
    """Ids of studies that could not be read, at which an earlier training into `folder` stopped."""
    found = _described(folder).get("unreadable", [])
    return [str(one) for one in found] if isinstance(found, list) else []


def date_before(folder: Path | None) -> str | None:
    """The day that the chat template printed in the unfinished training in `folder`, if any."""
    return _described(folder).get("template_date")


def _described(folder: Path | None) -> dict[str, Any]:
    """The description of the unfinished training in `folder`; {} where there is none to go on."""
    if folder is None or not checkpoints_in(folder):
        return {}
    try:
        found = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # `find_checkpoint` says what is wrong with it
    return found if isinstance(found, dict) else {}


def stopped(
    error: DiveError, folder: Path | None, run: dict[str, Any], unreadable: Collection[str]
) -> DiveError:
    """`error`, with where the training can go on; notes there which studies were the reason."""
    last = None if folder is None else last_whole(folder)[0]
    if folder is None or last is None:
        return error
    if int(os.environ.get("RANK", 0)) == 0:
        described = run | {"unreadable": sorted(unreadable)}
        write_text(folder / RUN_FILE, json.dumps(described, indent=1) + "\n")
    return DiveError(
        f"{error}; the training can be resumed from {last}, once the file is whole or with "
        "on_error='skip' (--on-error skip)"
    )


# what differs between two digests says nothing; what they are of does
_DIGESTS = {
    "studies_hash": "other studies to learn from (ids, reports, indications, patients or images)",
    "demonstrations_hash": "other demonstrations",
    "annotations_hash": "other annotations",
    "peft_hash": "other layers of PEFT's (LoRA) at work",
}


def _differences(earlier: Any, now: dict[str, Any]) -> list[str]:
    """What an earlier description says otherwise, a field at a time: "rank 8 (now 4)"."""
    if not isinstance(earlier, dict):
        return ["no description"]
    found = []
    if "template_hash" in now:
        other = difference(earlier, now)
        found += [] if other is None else [f"another chat template ({other})"]
    for name in now:
        old, new = earlier.get(name), now[name]
        if old == new or name in _FREE or name.startswith("template_"):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new)
        else:
            found.append(_DIGESTS.get(name, f"{name} {old!r} (now {new!r})"))
    return found


class IntervalsOfNow(TrainerCallback):
    """A checkpoint brings the intervals of logging, evaluation and saving under which it was
    written; those that are asked for now hold. And a checkpoint closes its interval of the log,
    which a resumed training would otherwise begin in the middle."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = control.should_log or control.should_save


def remove_checkpoints(folder: str | Path) -> None:
    """After the adapter is saved: the checkpoints of its training, and nothing else."""
    remove_all(Path(folder))
    (Path(folder) / RUN_FILE).unlink(missing_ok=True)
