"""What makes two trainings one, and where an unfinished one goes on."""

import functools
import hashlib
import json
import logging
import operator
import os
import reprlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerCallback

from dive.adapter.adapter import SteeringAdapter
from dive.adapter.config import CONFIG_FILE, WEIGHTS_FILE
from dive.data.films import changed, films_of, name_of
from dive.data.study import Study
from dive.errors import DiveError, checks
from dive.errors.private import public_source
from dive.files.atomic import check_folder, remove_leftovers, write_text
from dive.files.digests import of_json
from dive.files.disk import unwritable
from dive.files.lock import hold_folder
from dive.lexicon import lexicon_version
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.model_digest import computation_digests
from dive.prompting.prompter import DEFAULT_PROMPTS, Prompter
from dive.prompting.templates import difference
from dive.training.checkpoints import (
    ASIDE,
    checkpoints_in,
    is_the_end_of,
    last_whole,
    put_aside,
    remove_all,
)
from dive.training.config import DistillConfig
from dive.training.left_out import left_out_ids

T = TypeVar("T")
log = logging.getLogger(__name__)

RUN_FILE = "run.json"

# of a description, what no adapter needs to know (a template's facts are beside it)
NOT_IN_ADAPTERS = ("unreadable", "films")

# How a training runs and is watched: none of it reaches the adapter, so it may differ before and
# after an interruption.
_FREE = {
    "logging_steps", "eval_steps", "save_steps", "workers", "gradient_checkpointing",
    "validation_hash",
}  # fmt: skip


def one_at_a_time(run: Callable[..., T]) -> Callable[..., T]:
    """Around `distill(..., output_dir=)`: no other process trains into that folder meanwhile.

    It is refused before anything is read; under several ranks all of them are.
    """

    @functools.wraps(run)
    def with_folder(*given: Any, **named: Any) -> T:
        folder = named.get("output_dir")
        if folder is None:
            return run(*given, **named)
        folder = checks.path("output_dir", folder)
        check_folder(folder)
        with hold_folder(folder, ranks=True):
            return run(*given, **named)

    return with_folder


def describe_wish(
    config: DistillConfig, target: str, prompt: str | None, max_image_tokens: int | None
) -> dict[str, Any]:
    """What is known of a training before the backbone or any study is read; JSON values only."""
    return {
        # where features are kept changes nothing, and where files lie is nobody else's business
        "config": asdict(config)
        | {"cache_images": bool(config.cache_images), "decisive": public_source(config.decisive)},
        "prompt": DEFAULT_PROMPTS.get(target) if prompt is None else prompt,
        "target": target,
        "max_image_tokens": max_image_tokens,
    }


def describe_model(
    prompter: Prompter, adapter: SteeringAdapter, annotator: Any = None
) -> dict[str, Any]:
    """What is known of it with the backbone, and with what names the pathology (None: the
    lexicon)."""
    tuners = adapter.metadata["weights"]["tuner_samples"]
    return {
        "backbone": adapter.metadata["backbone"],
        **prompter.template.metadata(),
        "peft_hash": None if tuners is None else hashlib.sha256(tuners.encode()).hexdigest()[:16],
        **computation_digests(prompter),
        "decisive_hash": lexicon_version()
        if annotator is None
        else of_json(getattr(annotator, "identity", annotator.source)),
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

    def of(studies: Sequence[Study]) -> str:
        parts = [
            [study.id, study.report(target), study.indication or "", study.patient or ""]
            + [name_of(image) for image in study.images]
            for study in studies
        ]
        return of_json(parts, 16)

    shown, learnt = demonstrations, of(studies)
    films = films_of(studies, mended)
    if shown is None:
        pool = None
    elif len(shown.pool) == len(studies) and all(map(operator.is_, shown.pool, studies)):
        pool = learnt  # drawn from the studies themselves; a digest of many takes seconds
    else:
        pool = of(shown.pool)
        shows = films_of(shown.pool, mended)
        films |= {f"demonstration {key}": film for key, film in shows.items()}
    return {
        "studies_hash": learnt,
        "validation_hash": of(validation) if validation else None,
        "demonstrations": None if shown is None else shown.count or len(shown.pool),
        "demonstrations_hash": pool,
        "films": films,
    }


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
    except (OSError, ValueError, RecursionError) as error:
        raise DiveError(
            f"{folder}: its {RUN_FILE} cannot be read, so the unfinished training cannot go on; "
            "delete the folder to start again"
        ) from error
    differing = _differences(earlier, json.loads(json.dumps(run)))
    whole = last_whole(folder)[0]
    if isinstance(earlier, dict) and "films" in run:
        # a study that was left out stays out, whatever has become of its files
        but = [] if whole is None else left_out_ids(whole)
        other = changed(earlier.get("films"), run["films"], but)
        differing += [] if other is None else [other]
    if not differing and run.get("template_date") and "template_date" not in earlier:
        raise DiveError(
            f"{folder}: the chat template prints the date, and the unfinished training does not "
            "say which one its prompts had: it cannot go on to the same adapter; delete its "
            "checkpoints to start again"
        )
    if differing:
        few = differing[:8] + [f"{len(differing) - 8} more differences"] * (len(differing) > 8)
        raise DiveError(
            f"{folder}: the unfinished training had {', '.join(few)}; it cannot go on from there"
        )
    return whole


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
        raise unwritable(folder, error, into=True) from error


def unreadable_before(folder: Path | None) -> list[str]:
    """Ids of studies that could not be read, at which an earlier training into `folder` stopped."""
    found = _described(folder).get("unreadable", [])
    return [str(one) for one in found] if isinstance(found, list) else []


def date_before(folder: Path | None) -> str | None:
    """The day that the chat template printed in the unfinished training in `folder`, if any."""
    found = _described(folder).get("template_date")
    return found if isinstance(found, str) else None


def _described(folder: Path | None) -> dict[str, Any]:
    """The description of the unfinished training in `folder`; {} where there is none to go on."""
    if folder is None or not checkpoints_in(folder):
        return {}
    try:
        found = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
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
    "peft_hash": "other layers of PEFT's (LoRA) at work",
    "weights_hash": "other weights of the backbone",
    "config_hash": "other settings of the backbone (its config.json)",
    "processor_hash": "another tokenizer or image processor",
    "decisive_hash": "other annotations (or another lexicon) to find decisive tokens by",
}


# what a bare value would not explain
_WORDS = {
    "cache_images": "another choice of cache_images (--image-cache): features move last bits of "
    "what is learnt",
}


def _short(value: Any) -> str:
    """A value in one short line."""
    return checks.shown(value) if isinstance(value, str) else reprlib.repr(value)


# what descriptions of earlier versions lack
_NOTED_SINCE = {
    "dtype", "device", "ranks", "versions", "weights_hash", "config_hash", "processor_hash",
    "decisive_hash",
}  # fmt: skip


def _differences(earlier: Any, now: dict[str, Any]) -> list[str]:
    """What an earlier description says otherwise, a field at a time: "rank 8 (now 4)"."""
    if not isinstance(earlier, dict):
        return ["no description"]
    found = []
    if "template_hash" in now:
        known = isinstance(earlier.get("template_hash"), str)
        other = difference(earlier, now) if known else "it does not say which"
        found += [] if other is None else [f"another chat template ({other})"]
    for name in now:
        old, new = earlier.get(name), now[name]
        if old == new or name in _FREE or name == "films" or name.startswith("template_"):
            continue
        if name not in earlier and name in _NOTED_SINCE:
            found.append(f"no word on its {name} (an earlier version of dive began it)")
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new)
        elif isinstance(new, dict):
            found.append(f"a damaged {RUN_FILE} ({name} is {reprlib.repr(old)})")
        else:
            was = f"{name} {_short(old)} (now {_short(new)})"
            found.append(_DIGESTS.get(name, _WORDS.get(name, was)))
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
    """After the adapter is saved: the checkpoints of its training, and nothing else. The
    description goes first, and with it what a training needs to go on."""
    (Path(folder) / RUN_FILE).unlink(missing_ok=True)
    remove_all(Path(folder))


def clear_finished(out: Path) -> bool:
    """Removes what a training left that was ended after it had saved its adapter into `out`, while
    its checkpoints were being removed; whether there was anything."""
    folder = out / "checkpoints"
    if not (out / CONFIG_FILE).is_file() or not folder.is_dir():
        return False
    if checkpoints_in(folder):
        left = is_the_end_of(folder, out / WEIGHTS_FILE)
    else:  # a training that is still to replace the adapter has a description
        left = (folder / ASIDE).exists() and not (folder / RUN_FILE).exists()
    if left:
        remove_checkpoints(folder)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            remove_leftovers(out / name)
    return left
