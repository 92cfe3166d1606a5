"""Finding files in trees that people unpacked, renamed a little, or downloaded by half."""

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

MAX_TEXT_BYTES = 1 << 20  # of one report; the longest real ones have some ten thousand


def existing_folder(path: Path, wants: str) -> Path:
    """`path`, or DiveError if it is no folder."""
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        raise DiveError(f"the folder {path} {state}; wants {wants}")
    return path


def nested(root: Path, pattern: str, depth: int = 4) -> list[Path]:
    """`root` and the folders below it whose names, and their parents' names, match `pattern`."""
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
    """No search for garbage while millions of small objects are made that all stay: it costs a
    quarter of the time of reading a large table, and finds nothing. Not for code that yields."""
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
    """Some of the items, from all over: the first folders may be all that was downloaded."""
    return items[:: max(1, len(items) // count)][:count]


class PathFinder:
    """Where the files of a dataset may lie: ways of making a path from a key, best one first."""

    def __init__(self, ways: Sequence[Callable[[str], Path]], check: bool) -> None:
        self._ways = list(ways)
        self._check = check

    def probe(self, keys: Sequence[str]) -> int:
        """Try every way on `keys` (see `spread`), put the one that finds most first; its count."""
        hits = {
            number: sum(os.path.isfile(way(key)) for key in keys)
            for number, way in enumerate(self._ways)
        }
        order = sorted(hits, key=lambda number: -hits[number])
        self._ways = [self._ways[number] for number in order]
        return hits[order[0]]

    def find(self, key: str) -> Path:
        """The file of `key`; where there is none, or nobody wants to know, where it should be."""
        first = self._ways[0](key)
        if not self._check or os.path.isfile(first):
            return first
        return next((path for way in self._ways[1:] if os.path.isfile(path := way(key))), first)


def read_text(path: Path, where: str, encoding: str = "utf-8-sig") -> str:
    """A small text file. `where` names the study whose report it is: the path may name a patient.

    Raises:
        DiveError: missing, no regular file, too large to be a report, no UTF-8.
    """
    try:
        with open_file(path) as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError:
        log.info("%s: there is no %s", where, path)
        raise DiveError(f"{where}: there is no report file; is the download complete?") from None
    except NoRegularFile as error:
        log.info("%s: %s", where, error)
        raise DiveError(f"{where}: the report file is {error.kind}; wants a regular file") from None
    except OSError as error:
        log.info("%s: %s", where, error)
        raise DiveError(f"{where}: cannot read the report file: {error.strerror}") from error
    return decode_text(data, f"{where}: the report file", encoding)


def decode_text(data: bytes, name: str, encoding: str = "utf-8-sig") -> str:
    """`data` as text; DiveError that opens with `name` if it is none, or too long for a report."""
    if len(data) > MAX_TEXT_BYTES:
        raise DiveError(
            f"{name} has more than {MAX_TEXT_BYTES:,} bytes; wants the text of a report"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DiveError(
            f"{name}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x})"
        ) from None
