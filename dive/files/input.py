"""Reading of files that others wrote, with limits on their kind and size."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dive.errors import DiveError
from dive.errors.private import line_location

MAX_LINE = 16 << 20  # bytes of a line of JSON lines
MAX_JSON_BYTES = 1 << 30  # of a JSON file that is read whole; the largest in use has half of it

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


_UNOPENED = (errno.ENXIO, getattr(errno, "EOPNOTSUPP", errno.ENXIO), errno.ENODEV)


class NoRegularFile(DiveError):
    """The path is not that of a regular file.

    kind: what it is, "a pipe", for messages without the path.
    """

    def __init__(self, path: Path | str, kind: str) -> None:
        super().__init__(f"{path} is {kind}, want a regular file")
        self.kind = kind


def _kind(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "no file")


def open_file(path: Path | str, pipe: bool = False) -> Any:
    """Open a regular file for reading bytes.

    A pipe without a writer would block without end, and some devices have no end.

    pipe: a pipe is accepted (a shell's `<(command)`), for files that the user names.

    Raises:
        OSError: it does not exist, may not be read, or is a folder.
        NoRegularFile: it is no regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno in _UNOPENED:  # a socket, or a device without a driver
            raise NoRegularFile(path, _kind(os.stat(path).st_mode)) from None
        raise
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            kind = _kind(mode)
            if not (pipe and kind in ("a pipe", "a device")):
                raise NoRegularFile(path, kind)
            os.set_blocking(handle, True)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: Path | str, most: int, pipe: bool = False) -> bytes:
    """The bytes of a file, at most `most` of them.

    Raises:
        OSError: it does not exist, or may not be read.
        DiveError: it is no regular file, or larger than `most`.
    """
    with open_file(path, pipe) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > most else file.read(most + 1)
    if size > most or len(data) > most:
        held = f"{size:,}" if size > most else f"more than {most:,}"
        raise DiveError(f"{path} holds {held} bytes; the limit is {most:,}")
    return data


def lines_of(path: Path | str, pipe: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yields (number from 1 on, bytes without the line break) of each line, blank ones included.

    A byte order mark at the start of the file is removed.

    Raises:
        OSError: it does not exist, or may not be read.
        DiveError: it is no regular file (or pipe); UTF-16; a line of more than `MAX_LINE` bytes.
    """
    with open_file(path, pipe) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise DiveError(f"{line_location(path, number)}: is longer than {MAX_LINE:,} bytes")
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DiveError(f"{line_location(path, 1)}: is UTF-16, want UTF-8")
            yield number, line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").rstrip(b"\n")
