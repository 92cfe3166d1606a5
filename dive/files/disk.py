"""The reason why a file cannot be written, in one line."""

import errno
import os
import resource
from pathlib import Path

from dive.errors import DiveError

# a full or broken disk: every later file of the run would fail, too
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def unwritable(
    path: str | Path, error: Exception, wanted: int | None = None, *, into: bool = False
) -> DiveError:
    """The DiveError "cannot write PATH: the reason", to be raised from `error`.

    wanted: bytes to be written; a message about a full disk has them and the free bytes.
    into: the path is a folder.
    """
    return DiveError(f"cannot write {'into ' if into else ''}{path}: {reason(error, path, wanted)}")


def reason(error: Exception, path: str | Path, wanted: int | None = None) -> str:
    """Why `path` could not be written, with the bytes wanted and free where the disk is full."""
    words = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
    words = words or type(error).__name__
    number = getattr(error, "errno", None)
    if number not in FULL or number == errno.EROFS:
        return words
    parts = [] if wanted is None else [f"{wanted:,} bytes wanted"]
    if number == errno.EFBIG:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        parts += [] if most < 0 else [f"this process may write files of {most:,}"]
    elif number != errno.EIO:
        left = free_bytes(path)
        parts += [] if left is None else [f"{left:,} left on the disk"]
    return f"{words} ({', '.join(parts)})" if parts else words


def free_bytes(path: str | Path) -> int | None:
    """Free bytes on the file system of `path`, which need not exist; None where unknown."""
    for folder in (Path(path), *Path(path).absolute().parents):
        try:
            found = os.statvfs(folder)
        except (OSError, ValueError):
            continue
        return found.f_bavail * found.f_frsize
    return None
