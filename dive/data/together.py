"""Several files of one thing, of which an older one and a newer one must never be mixed."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from dive.data.io import write_bytes

WRITING = ".writing"  # a folder in that one, for a moment


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` into `folder`, by their names, so that readers never meet old ones with new.

    All of them are whole on the disk before the first one of the folder changes: a disk that is
    full leaves the old ones. Then the last of them, without which the others are nothing, goes, and
    comes when the others are there: a process that is killed in that moment leaves no such file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    *_, last = files
    place = folder / WRITING
    remove_unfinished(folder)  # of a process that was killed
    try:
        for file, data in files.items():
            write_bytes(place / file, data)
        (folder / last).unlink(missing_ok=True)
        for file in files:
            os.replace(place / file, folder / file)
    finally:
        remove_unfinished(folder)


def remove_unfinished(folder: Path) -> None:
    """What a process that was killed left of its files in `folder`."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder / WRITING):
            os.unlink(folder / WRITING / name)
        os.rmdir(folder / WRITING)
