"""What makes two trainings one, and where an unfinished one goes on."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.trainer_utils import get_last_checkpoint

from dive.adapter import SteeringAdapter
from dive.data.images import LazyImage
from dive.data.io import write_text
from dive.data.study import Study
from dive.errors import DiveError
from dive.examples import Examples
from dive.presets import DistillConfig
from dive.prompting import Prompter
from dive.teacher import Teacher

log = logging.getLogger(__name__)

RUN_FILE = "run.json"


def describe_run(
    config: DistillConfig,
    prompter: Prompter,
    adapter: SteeringAdapter,
    examples: Examples,
    validation: Examples | None,
    teacher: Teacher | None,
) -> dict[str, Any]:
    """What must be equal for two trainings to be one; JSON values only."""

    def digest(studies: Sequence[Study]) -> str:
        parts = [
            [study.id, study.report(prompter.target), study.indication or "", study.patient or ""]
            + [_name_of(image) for image in study.images]
            for study in studies
        ]
        return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()[:16]

    shown = teacher.demonstrations if teacher is not None else None
    return {
        # where features are kept changes nothing, and is nobody else's business
        "config": asdict(config) | {"cache_images": bool(config.cache_images)},
        "backbone": adapter.metadata["backbone"],
        "prompt": prompter.prompt,
        "target": prompter.target,
        "template_hash": prompter.template_hash,
        "max_image_tokens": prompter.max_image_tokens,
        "studies_hash": digest(examples.studies),
        "validation_hash": None if validation is None else digest(validation.studies),
        "demonstrations": None if shown is None else shown.count or len(shown.pool),
        "demonstrations_hash": None if shown is None else digest(shown.pool),
    }


def _name_of(image: Path | Image.Image | LazyImage) -> str:
    """An image, well enough to see that it was exchanged: a file by name and size, for reading
    200,000 films would take hours."""
    if isinstance(image, Image.Image):
        return hashlib.sha256(image.tobytes()).hexdigest()
    if isinstance(image, Path) and image.is_file():
        return f"{image.name} {image.stat().st_size}"
    return str(image)


def find_checkpoint(folder: Path | None, resume: bool, run: dict[str, Any]) -> str | None:
    """The checkpoint to go on from, after checking that it belongs to this very training."""
    if folder is None:
        if resume:
            raise DiveError("distill: resume wants output_dir, where the checkpoints are")
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiveError(f"cannot write into {folder}: {error.strerror}") from error
    last = get_last_checkpoint(str(folder))
    if last is not None and not resume:
        raise DiveError(
            f"{folder}: holds the checkpoints of an unfinished training; resume it, delete them, "
            "or choose another folder"
        )
    if last is not None:
        try:
            earlier = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DiveError(
                f"{folder}: its {RUN_FILE} cannot be read, so the unfinished training cannot go "
                "on; delete the folder to start again"
            ) from error
        differing = _differences(earlier, json.loads(json.dumps(run)))
        if differing:
            raise DiveError(
                f"{folder}: the unfinished training had {', '.join(differing)}; it cannot go on "
                "from there"
            )
    elif int(os.environ.get("RANK", 0)) == 0:
        if resume:
            log.warning("%s: has no checkpoint to resume; the training starts anew", folder)
        write_text(folder / RUN_FILE, json.dumps(run, indent=1) + "\n")
    return last


# what differs between two digests says nothing; what they are of does
_DIGESTS = {
    "studies_hash": "other studies to learn from (ids, reports, indications, patients or images)",
    "validation_hash": "other studies for validation",
    "demonstrations_hash": "other demonstrations",
    "template_hash": "another chat template",
}


def _differences(earlier: Any, now: dict[str, Any]) -> list[str]:
    """What an earlier description says otherwise, a field at a time: "rank 8 (now 4)"."""
    if not isinstance(earlier, dict):
        return ["no description"]
    found = []
    for name in now:
        old, new = earlier.get(name), now[name]
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new)
        else:
            found.append(_DIGESTS.get(name, f"{name} {old!r} (now {new!r})"))
    return found


def remove_checkpoints(folder: str | Path) -> None:
    """After the adapter is saved: the checkpoints of its training, and nothing else."""
    folder = Path(folder)
    while (last := get_last_checkpoint(str(folder))) is not None:
        shutil.rmtree(last)
    (folder / RUN_FILE).unlink(missing_ok=True)
