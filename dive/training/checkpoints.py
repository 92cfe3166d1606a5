"""Checkpoints on the disk, which get their name only when they are complete.

A training may be killed at any instant. A folder with a checkpoint's name is complete, with the
sizes and digests of its files in `WHOLE_FILE`; what is being written or removed lies in `ASIDE`.
Damage since then shows in those digests.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from dive.errors import DiveError
from dive.files.atomic import write_text

ASIDE = ".unfinished"
WHOLE_FILE = "whole.json"
_NAME = re.compile(r"checkpoint-([0-9]+)")
_STATE = "trainer_state.json"
_WEIGHTS = "adapter.safetensors"
# without one of them a resumed training would be another one (random states: see harm_of)
_NEEDED = (
    _STATE, "optimizer.pt", "scheduler.pt", _WEIGHTS, "adapter_config.json", "left_out.json",
)  # fmt: skip


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders with a checkpoint's name, the newest first; `folder` need not exist."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [folder / name for name in names if _NAME.fullmatch(name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written, from its name."""
    return int(checkpoint.name.rpartition("-")[2])


def harm_of(checkpoint: Path) -> str | None:
    """The reason why a checkpoint is not whole, or None if it is.

    Raises:
        DiveError: one of its files exists and cannot be read.
    """
    data = _read(checkpoint / WHOLE_FILE)
    if data is None:
        return f"{WHOLE_FILE} is missing"
    files = _listed(data)
    if files is None:
        return f"{WHOLE_FILE} is damaged"
    unlisted = [name for name in _NEEDED if name not in files]
    if not any(name.startswith("rng_state") for name in files):
        unlisted.append("a random state")
    if unlisted:
        return f"{WHOLE_FILE} does not list {unlisted[0]}"
    for name, known in files.items():
        data = _read(checkpoint / name)
        if data is None:
            return f"{name} is missing"
        if _facts(data) != known:
            return f"{name} is damaged"
    for name in sorted(os.listdir(checkpoint)):
        # Trainer would read any file whose name it knows
        if name not in files and name != WHOLE_FILE and not name.startswith("."):
            return f"{name} was not written with it"
    step = _steps(checkpoint)[0]
    return None if step == step_of(checkpoint) else f"it is of step {step}"


def is_the_end_of(folder: Path, weights: Path) -> bool:
    """Whether a training into `folder` made all its steps and `weights` is its final adapter, so
    that what is left in the folder may be removed."""
    last, _ = last_whole(folder)
    if last is None:
        return False
    done, wanted = _steps(last)
    data = _read(weights)
    return done is not None and done == wanted and data == _read(last / _WEIGHTS)


def _listed(data: bytes) -> dict[str, tuple] | None:
    """The size and digest of each file by its name; None for data that is no such list."""
    try:
        files = {name: tuple(known) for name, known in json.loads(data)["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return files if all(Path(name).name == name for name in files) else None


def _steps(checkpoint: Path) -> tuple[Any, Any]:
    """The step of a checkpoint and the steps of the whole training, as Trainer stored them."""
    try:
        state = json.loads(_read(checkpoint / _STATE) or b"")
        return state["global_step"], state["max_steps"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, None


def last_whole(folder: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest whole checkpoint, and the newer ones that are not whole, with the reasons."""
    passed: list[tuple[Path, str]] = []
    for checkpoint in checkpoints_in(folder):
        harm = harm_of(checkpoint)
        if harm is None:
            return checkpoint, passed
        passed.append((checkpoint, harm))
    return None, passed


def aside_of(folder: Path) -> Path:
    """Make the folder in which the next checkpoint is written, without earlier leftovers."""
    aside = folder / ASIDE
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    return aside


def publish(written: Path, folder: Path, keep: int) -> None:
    """Give a complete checkpoint its name in `folder`, and remove all but the newest `keep`."""
    files = {}
    for path in sorted(written.iterdir()):
        with path.open("rb") as file:
            files[path.name] = _facts(file.read())
            os.fsync(file.fileno())
    write_text(written / WHOLE_FILE, json.dumps({"files": files}, indent=1) + "\n")
    _sync(written)
    named = folder / written.name
    if named.exists():
        put_aside(named)
    written.rename(named)
    _sync(folder)
    for old in checkpoints_in(folder)[keep:]:
        put_aside(old)
    shutil.rmtree(folder / ASIDE)


def put_aside(checkpoint: Path) -> Path:
    """Move a checkpoint into `ASIDE`, in one step. Returns its path there."""
    aside = checkpoint.parent / ASIDE
    aside.mkdir(exist_ok=True)
    former = aside / f"former-{checkpoint.name}"
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(former)
    checkpoint.rename(former)
    return former


def remove_all(folder: Path) -> None:
    """Remove every checkpoint, and leftovers of others. The newest is removed last: it shows how
    far the training came."""
    for checkpoint in reversed(checkpoints_in(folder)):
        put_aside(checkpoint)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        shutil.rmtree(folder / ASIDE)


def _read(path: Path) -> bytes | None:
    try:
        # reading a pipe might block for ever
        return path.read_bytes() if path.is_file() else None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise DiveError(f"{path} cannot be read: {error.strerror}") from error


def _facts(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


def _sync(folder: Path) -> None:
    """Flush a folder's names to the disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
