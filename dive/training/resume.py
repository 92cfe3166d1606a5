"""The folder of a training's checkpoints, and where an unfinished training goes on."""

import json
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dive.data.films import changed
from dive.errors import DiveError, checks
from dive.files.atomic import check_folder, write_text
from dive.files.disk import unwritable
from dive.files.lock import hold_folder
from dive.training.checkpoints import checkpoints_in, last_whole, put_aside
from dive.training.fingerprint import FINGERPRINT_FILE, differences
from dive.training.left_out import left_out_ids
from dive.training.ranks import rank

log = logging.getLogger(__name__)


@contextmanager
def training_folder(output_dir: Any) -> Iterator[Path | None]:
    """Hold the folder `output_dir`, so that no other process trains into it; None for None.

    Raises:
        DiveError: it cannot be written, or another process holds it. Raised on every rank.
    """
    if output_dir is None:
        yield None
        return
    folder = checks.path("output_dir", output_dir)
    check_folder(folder)
    with hold_folder(folder, ranks=True):
        yield folder


def find_checkpoint(folder: Path | None, resume: bool, fingerprint: dict[str, Any]) -> Path | None:
    """The last whole checkpoint in the folder of an unfinished training, if that is this training.

    fingerprint: of this training, as far as it is known. To be called as early as possible, and
        again when more is known.

    Raises:
        DiveError: the unfinished training is another one, or is not to be resumed; there is no
            folder to resume from.
    """
    if folder is None:
        if resume:
            raise DiveError(
                "distill: resume is set and output_dir is None, want the folder of the checkpoints"
            )
        return None
    if not checkpoints_in(folder):
        return None
    if not resume:
        raise DiveError(
            f"{folder}: holds the checkpoints of an unfinished training; resume it, delete them, "
            "or choose another folder"
        )
    try:
        earlier = json.loads((folder / FINGERPRINT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DiveError(
            f"{folder}: its {FINGERPRINT_FILE} cannot be read, so the unfinished training cannot "
            "go on; delete the folder to start again"
        ) from error
    differing = differences(earlier, json.loads(json.dumps(fingerprint)))
    whole = last_whole(folder)[0]
    if isinstance(earlier, dict) and "films" in fingerprint:
        # a study that was left out stays out, even if its files have changed
        but = [] if whole is None else left_out_ids(whole)
        other = changed(earlier.get("films"), fingerprint["films"], but)
        differing += [] if other is None else [other]
    if not differing and fingerprint.get("template_date") and "template_date" not in earlier:
        raise DiveError(
            f"{folder}: the chat template prints the date, and the unfinished training does not "
            "say which one its prompts had: it cannot go on to the same adapter; delete its "
            "checkpoints to start again"
        )
    if differing:
        listed = differing[:8] + [f"{len(differing) - 8} more differences"] * (len(differing) > 8)
        raise DiveError(
            f"{folder}: the unfinished training had {', '.join(listed)}; it cannot go on from there"
        )
    return whole


def begin_in(
    folder: Path, resume: bool, fingerprint: dict[str, Any], checkpoint: Path | None
) -> None:
    """Make the folder of a training that goes on from `checkpoint`, or starts and writes its
    fingerprint. Checkpoints that are passed over lose their names, with a warning."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if rank() > 0:
            return
        whole, passed = last_whole(folder)
        for one, harm in passed:
            log.warning("%s is not whole (%s) and is passed over", one, harm)
            put_aside(one)
        if checkpoint is None:
            if resume:
                log.warning("%s: has no checkpoint to resume; the training starts anew", folder)
            write_text(folder / FINGERPRINT_FILE, json.dumps(fingerprint, indent=1) + "\n")
        elif passed:
            log.warning("the training goes on from %s", whole)
    except OSError as error:
        raise unwritable(folder, error, into=True) from error


def unreadable_before(folder: Path | None) -> list[str]:
    """Ids of the unreadable studies at which an earlier training into `folder` stopped."""
    found = _earlier_fingerprint(folder).get("unreadable", [])
    return [str(one) for one in found] if isinstance(found, list) else []


def date_before(folder: Path | None) -> str | None:
    """The date that the chat template printed in the unfinished training in `folder`, if any."""
    found = _earlier_fingerprint(folder).get("template_date")
    return found if isinstance(found, str) else None


def _earlier_fingerprint(folder: Path | None) -> dict[str, Any]:
    """The fingerprint of the unfinished training in `folder`; {} where there is none to resume."""
    if folder is None or not checkpoints_in(folder):
        return {}
    try:
        found = json.loads((folder / FINGERPRINT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # `find_checkpoint` raises
    return found if isinstance(found, dict) else {}


def resumable_stop(
    error: DiveError, folder: Path | None, fingerprint: dict[str, Any], unreadable: Collection[str]
) -> DiveError:
    """Name the checkpoint in `error` from which the training can be resumed, if there is one, and
    keep the ids of the unreadable studies in the folder's fingerprint."""
    last = None if folder is None else last_whole(folder)[0]
    if folder is None or last is None:
        return error
    if rank() == 0:
        stopped = fingerprint | {"unreadable": sorted(unreadable)}
        write_text(folder / FINGERPRINT_FILE, json.dumps(stopped, indent=1) + "\n")
    return DiveError(
        f"{error}; the training can be resumed from {last}, once the file is whole or with "
        "on_error='skip' (--on-error skip)"
    )
