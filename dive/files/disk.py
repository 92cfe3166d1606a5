"""What the operating system says of a file that cannot be written, in one line."""

import errno
import os
import resource
from pathlib import Path

from dive.errors import DiveError

# no place: the rest of a run would meet it again
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def unwritable(
    path: str | Path, error: Exception, wanted: int | None = None, *, into: bool = False
) -> DiveError:
    """ "cannot write PATH: the reason", for whoever raises it from `error`.

    wanted: bytes that were to be written; said, beside what is left, where room was the reason.
    into: the path is a folder.
    """
    return DiveError(f"cannot write {'into ' if into else ''}{path}: {reason(error, path, wanted)}")


def reason(error: Exception, path: str | Path, wanted: int | None = None) -> str:
    """Why `path` could not be written: the system's words, and bytes where room was the reason."""
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
    """Bytes that are left where `path` is or would be, None where that cannot be told."""
    for folder in (Path(path), *Path(path).absolute().parents):
        try:
            found = os.statvfs(folder)
        except (OSError, ValueError):
            continue
        return found.f_bavail * found.f_frsize
    return None
