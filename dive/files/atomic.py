"""Atomic writing of files, and checks of output paths before anything is computed."""

import contextlib
import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from filelock import lock_descriptor

from dive.errors import DiveError
from dive.files.disk import unwritable


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, so that `path` has the old content or the new one, never a part."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data`, so that `path` has the old content or the new one, never a part.

    Of a link its target is written, and the link stays. A replaced file keeps its mode.

    Raises:
        DiveError: it cannot be written (disk full, no permission), or is no regular file.
    """
    write_together({path: data})


def write_together(files: Mapping[str | Path, bytes]) -> None:
    """`write_bytes` of files that belong together, so that no reader finds old and new ones.

    No file is replaced before all of them are written to the disk. Then the last one, without which
    the others are not read, is removed, and is written again after the others: a process that is
    killed in between leaves no such file.
    """
    with contextlib.ExitStack() as ends:
        staged = []
        for path, data in files.items():
            target = target_of(path)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                # In the same folder, because a rename is atomic within one file system only.
                aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
                handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                ends.callback(_drop, handle, aside)
                keep_mode(handle, target)
                write_all(handle, data)
                os.fsync(handle)
            except OSError as error:
                raise unwritable(path, error, len(data)) from error
            staged.append((path, target, aside, handle))
        for path, _, aside, handle in staged:
            if not is_file_of(handle, aside):
                raise DiveError(f"cannot write {path}: another process took {aside} away")
        for step, (path, target, aside, _) in enumerate(staged):
            try:
                if step == 0 and len(staged) > 1:
                    staged[-1][1].unlink(missing_ok=True)
                os.replace(aside, target)
            except OSError as error:
                raise unwritable(path, error) from error


def _drop(handle: int, aside: Path) -> None:
    """Removes a temporary file, unless it was renamed."""
    with contextlib.suppress(OSError):
        if is_file_of(handle, aside):
            os.unlink(aside)
    with contextlib.suppress(OSError):
        os.close(handle)


def append_line(path: str | Path, line: str) -> None:
    """Append a line, whole or not at all, even if several processes append to one file.

    Raises:
        DiveError: as `write_bytes`.
    """
    target, data = target_of(path), line.encode("utf-8")
    try:
        handle = os.open(target, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                lock_descriptor(handle)
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                data = b"\n" + data  # after an incomplete last line
            try:
                write_all(handle, data)
            except BaseException:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise unwritable(path, error, len(data)) from error


def write_all(handle: int, data: bytes) -> None:
    """Write all of `data` into an open file, unbuffered."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left[: 1 << 30]) :]


class Growing:
    """A file that grows by whole lines: a line that cannot be written whole is removed again.

    path: the file, which must not be a link. target: the file that it will replace; it gets its
    mode. Every method raises OSError.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._handle: int | None = os.open(path, flags, 0o666)
        keep_mode(self._handle, target)
        self._size = os.fstat(self._handle).st_size

    def append(self, line: bytes) -> None:
        handle = self._open()
        try:
            write_all(handle, line)
        except BaseException:
            try:
                os.ftruncate(handle, self._size)
            except OSError:
                self.close()  # nothing may follow an incomplete line; the next run drops it
            raise
        self._size += len(line)

    def is_ours(self) -> bool:
        """Whether `path` is still this file, with the length that was written."""
        handle = self._open()
        return is_file_of(handle, self.path) and os.fstat(handle).st_size == self._size

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._handle is None

    def sync(self) -> None:
        os.fsync(self._open())

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(
                OSError
            ):  # of a full network disk, reported by `append` before
                os.close(handle)

    def _open(self) -> int:
        if self._handle is None:
            raise OSError(errno.EBADF, "it is closed")
        return self._handle


def is_file_of(handle: int, path: Path) -> bool:
    """Whether `path` is still this open file, and no link to it."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def identity(path: Path) -> tuple[int, ...] | None:
    """Values that differ after a file was replaced or changed; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def keep_mode(handle: int, target: Path) -> None:
    """Give an open file the mode of the file that it will replace, if there is one."""
    with contextlib.suppress(OSError):
        os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))


def remove_leftovers(target: Path, *more: str) -> None:
    """Remove the temporary files that a killed process left of `target`.

    more: suffixes of further files of that name. The caller must hold the lock of the output, or
    the files of another process would be removed while it writes them.
    """
    ends = "|".join(map(re.escape, ("", *more)))
    name = re.compile(rf"\.{re.escape(target.name)}({ends})\.[0-9a-f]{{8}}\.tmp")
    with contextlib.suppress(OSError):
        for one in os.listdir(target.parent):
            if name.fullmatch(one):
                os.unlink(target.parent / one)


def check_folder(path: str | Path) -> None:
    """Raise DiveError unless files could be written into this folder, which need not exist."""
    path = Path(path)
    try:
        nearest = path
        while not _stat(nearest):
            nearest = nearest.parent
        found = None if nearest.is_dir() else _kind(nearest)
        if found is None:
            # A file without a name shows missing permissions and full or read-only file systems,
            # for root, too.
            with tempfile.TemporaryFile(dir=nearest):
                pass
    except (OSError, ValueError) as error:
        raise unwritable(path, error, into=True) from error
    if found is not None:
        if nearest == path:
            raise DiveError(f"{path} is {found}, want a folder")
        raise DiveError(f"cannot write into {path}: {nearest} is {found}")


def check_file(path: str | Path) -> None:
    """Raise DiveError unless a file of this name could be written; it need not exist.

    Anything there that is no regular file (a device, a pipe, a broken link) is refused; of a link
    its target would be written.
    """
    target = target_of(path)
    try:
        check_folder(target.parent)
    except DiveError as error:
        raise DiveError(f"cannot write {path}: {error}") from error


def target_of(path: str | Path) -> Path:
    """The file that is written under this name, links followed; it need not exist.

    Raises:
        DiveError: there is something else than a regular file.
    """
    wanted = "want the name of a file to write"
    try:
        there = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if os.path.islink(path):
            end = os.readlink(path)
            raise DiveError(
                f"{path} is no regular file but a link to {end}, which is not there, {wanted}"
            ) from error
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from error
    else:
        if stat.S_ISDIR(there.st_mode):
            raise DiveError(f"{path} is a folder, {wanted}")
        if not stat.S_ISREG(there.st_mode):
            raise DiveError(f"{path} is no regular file, {wanted}")
    return Path(os.path.realpath(path))


def _kind(path: Path) -> str:
    """The kind of something that is no folder, for a message."""
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there"
    return "a file" if path.is_file() else "no folder"


def _stat(path: Path) -> bool:
    """Whether anything has this name; OSError for a name that is not possible."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path.is_symlink()  # a broken link is in the way, too
    return True
