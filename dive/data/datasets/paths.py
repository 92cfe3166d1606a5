"""Search for files in folders that were unpacked, renamed a little, or partly downloaded."""

import contextlib
import gc
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from dive.errors import DiveError
from dive.files.input import NoRegularFile, open_file

log = logging.getLogger(__name__)

Item = TypeVar("Item")

MAX_TEXT_BYTES = 1 << 20  # of one report; the longest real ones have about ten thousand


def existing_folder(path: Path, wants: str) -> Path:
    """Returns `path`; raises DiveError if it is no folder."""
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        raise DiveError(f"the folder {path} {state}, want {wants}")
    return path


def nested(root: Path, pattern: str, depth: int = 4) -> list[Path]:
    """`root` and the folders below it all of whose names match `pattern`."""
    found, level = [root], [root]
    for _ in range(depth):
        level = [
            Path(entry.path)
            for folder in level
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
            if re.fullmatch(pattern, entry.name) and entry.is_dir()
        ]
        found += level
    return found


@contextlib.contextmanager
def bulk() -> Iterator[None]:
    """Disables garbage collection while millions of small objects are created that all stay.

    It would take a quarter of the time of reading a large table, and find nothing. Not for
    generators.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def unique(paths: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))


def spread(items: Sequence[Item], count: int = 64) -> Sequence[Item]:
    """Up to `count` evenly spaced items; the first may be all that was downloaded."""
    return items[:: max(1, len(items) // count)][:count]


class PathFinder:
    """Finds the files of a dataset by functions from a key to a path, the best one first."""

    def __init__(self, ways: Sequence[Callable[[str], Path]], check: bool) -> None:
        self._ways = list(ways)
        self._check = check

    def probe(self, keys: Sequence[str]) -> int:
        """Put the function first that finds most of `keys` (see `spread`), and return the count."""
        hits = {
            number: sum(os.path.isfile(way(key)) for key in keys)
            for number, way in enumerate(self._ways)
        }
        order = sorted(hits, key=lambda number: -hits[number])
        self._ways = [self._ways[number] for number in order]
        return hits[order[0]]

    def find(self, key: str) -> Path:
        """The file of `key`; if none exists, or existence is not checked, the expected path."""
        first = self._ways[0](key)
        if not self._check or os.path.isfile(first):
            return first
        return next((path for way in self._ways[1:] if os.path.isfile(path := way(key))), first)


def read_text(path: Path, where: str, encoding: str = "utf-8-sig") -> str:
    """Read the report of a study. `where` names the study, because the path may name a patient.

    Raises:
        DiveError: it is missing, no regular file, too large to be a report, or no UTF-8.
    """
    try:
        with open_file(path) as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError:
        log.info("%s: there is no %s", where, path)
        raise DiveError(f"{where}: there is no report file; is the download complete?") from None
    except NoRegularFile as error:
        log.info("%s: %s", where, error)
        raise DiveError(f"{where}: the report file is {error.kind}, want a regular file") from None
    except OSError as error:
        log.info("%s: %s", where, error)
        raise DiveError(f"{where}: cannot read the report file: {error.strerror}") from error
    return decode_text(data, f"{where}: the report file", encoding)


def decode_text(data: bytes, name: str, encoding: str = "utf-8-sig") -> str:
    """Decode `data`; the DiveError for invalid or too long data begins with `name`."""
    if len(data) > MAX_TEXT_BYTES:
        raise DiveError(f"{name} has more than {MAX_TEXT_BYTES:,} bytes, want the text of a report")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DiveError(
            f"{name}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x})"
        ) from None
