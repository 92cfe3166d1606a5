"""A lock for each output, so that one process at a time writes it; it ends with the process.

The lock of a file is `.NAME.lock` next to it (of a link next to its target), that of a folder is
`.lock` in it. It is a lock of the operating system (`flock`; over NFS the server's), so a killed
process releases it, and a lock file that it leaves behind is no obstacle; a process that ends
normally removes the file. The file names the holder for the error message of others: process,
machine, command, and since when. A file of that name with any other content is somebody's own: the
output is refused, and the file stays.

On a file system without locks (some mounts of Lustre, NFS without its lock daemon) one warning
says so, and the run continues: only the checks before every rename are left.
"""

import contextlib
import errno
import json
import os
import socket
import stat
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from dive.errors import DiveError
from dive.files.disk import unwritable

# errors of a file system without locks
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_SETTLES = 0.5  # seconds within which a holder has written its name, or has ended
_RANKS_WAIT = 30.0  # seconds for the first rank to take the lock
_FACTS = ("pid", "host", "command", "since", "job")  # fields of a lock file, in this order
_MOST = 4096  # bytes of a lock file that are read
_COMMANDS = {
    "demo", "distill", "generate", "export-vllm", "evaluate", "report", "inspect", "bench",
    "doctor",
}  # fmt: skip

_guard = threading.RLock()  # reentrant: a finalizer may run at any line
_held: dict[Path, tuple[int, dict[str, Any]]] = {}  # lock file -> its handle and its holder
_warned: set[int] = set()


class Held:
    """An output that this process has locked, until `release`, the end of a `with`, or its end.

    path: the lock file. output: the locked output. facts: the holder, as in the lock file.
    """

    def __init__(self, output: Path, path: Path, handle: int | None, made: list[Path]) -> None:
        self.output = output
        self.path = path
        self.facts = {} if handle is None else _sign(handle)
        # without `release`: at the end of the program, or when the object is collected
        self._end = weakref.finalize(self, _let_go, path, handle, made, os.getpid())

    def release(self) -> None:
        """Release the lock and remove its file. A second call does nothing."""
        self._end()

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def hold_file(path: str | Path, *, wait: float = 0.0) -> Held:
    """Lock a file that is to be written; neither it nor its folder need exist.

    wait: seconds to wait for another holder.

    Raises:
        DiveError: it is locked already, by this or another process (the message names the holder);
            its folder cannot be written.
    """
    return _hold(Path(path), lock_of(path), wait)


def lock_of(path: str | Path) -> Path:
    """The lock file of a file, links followed."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.lock")


def hold_folder(path: str | Path, *, wait: float = 0.0, ranks: bool = False) -> Held:
    """Lock a folder that is to be filled, and create it if necessary; see `hold_file`.

    ranks: of several ranks the first one holds the lock for all of them. The others wait until it
        does; where another job has locked the folder, they raise the same error.
    """
    lock = Path(os.path.realpath(path)) / ".lock"
    if ranks and int(os.environ.get("RANK", 0)) > 0:
        _await_first_rank(Path(path), lock)
        return Held(Path(path), lock, None, [])
    return _hold(Path(path), lock, wait)


def _hold(output: Path, lock: Path, wait: float) -> Held:
    now = time.monotonic()
    settled, ends = now + _SETTLES, now + wait
    made: list[Path] = []
    try:
        while True:
            held, holder = _try(output, lock, made)
            if held is not None:
                return held
            now = time.monotonic()
            if now > ends and (now > settled or _alive(holder)):
                raise DiveError(_refusal(output, holder))
            time.sleep(0.02)
    except BaseException:
        _remove(made)
        raise


def _try(output: Path, lock: Path, made: list[Path]) -> tuple[Held | None, dict[str, Any] | None]:
    """The lock, or its holder as far as that is known."""
    with _guard:  # also keeps a process from being forked here, which would inherit the lock
        if lock in _held:
            return None, _held[lock][1]
        handle = _open(output, lock, made)
        if handle is None:
            return None, None
        try:
            if _lock(handle, lock):
                _check_own(output, lock, handle)
                held = Held(output, lock, handle, made)
                _held[lock] = handle, held.facts
                return held, None
            holder = _holder(handle)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return None, holder


def _open(output: Path, lock: Path, made: list[Path]) -> int | None:
    """Open the lock file; None where it was removed meanwhile. New folders are added to `made`."""
    try:
        for folder in (*reversed(lock.parent.parents), lock.parent):
            if not folder.exists():
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    made.append(folder)
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe of that name does not block
        try:
            handle = os.open(lock, flags | os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            # left by a killed process of another user: it can be locked nevertheless
            handle = os.open(lock, flags | os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        kind = _no_file(lock)
        if kind is None:
            raise unwritable(output, error) from error
        raise _taken(output, lock, f"is {kind}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _taken(output, lock, "is no regular file")
    return handle


def _no_file(lock: Path) -> str | None:
    """The kind of something at the lock's path that is no regular file; None otherwise."""
    try:
        mode = os.lstat(lock).st_mode
    except OSError:
        return None
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "no file"


def _taken(output: Path, lock: Path, why: str) -> DiveError:
    return DiveError(
        f"cannot write {output}: {lock} {why}, and its lock needs that name: rename it, or write "
        "somewhere else"
    )


def _check_own(output: Path, lock: Path, handle: int) -> None:
    """Raise DiveError where an unlocked lock file has content that DIVE did not write."""
    data = os.pread(handle, _MOST + 1, 0)
    if not data.strip(b"\0"):  # new, or zeroed by a power cut
        return
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        # cut off by a full disk
        ours = data.startswith(b'{"pid": ') and len(data) < _MOST and b"\n" not in data
    else:
        ours = isinstance(found, dict) and tuple(found) == _FACTS
    if not ours:
        raise _taken(output, lock, "has content that dive did not write")


def _lock(handle: int, lock: Path) -> bool:
    """Lock the file; False where another process has it, or it lost its name."""
    try:
        if not lock_descriptor(handle, blocking=False):
            return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise unwritable(lock, error) from error
        device = os.fstat(handle).st_dev
        if device not in _warned:
            _warned.add(device)
            warnings.warn(
                f"the file system of {lock.parent} has no locks ({error.strerror}): nothing keeps "
                "a second process from writing the same output",
                stacklevel=2,
            )
        return True
    return _is_at(handle, lock)  # the previous holder may have removed it


def _is_at(handle: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(lock))
    except OSError:
        return False


def _sign(handle: int) -> dict[str, Any]:
    """Write the holder into the lock file; on a full disk that fails, and the lock holds."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    values = (os.getpid(), socket.gethostname(), _command(), since, _job())
    facts = dict(zip(_FACTS, values, strict=True))
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(facts) + "\n").encode("utf-8"), 0)
    return facts


def _command() -> str:
    """The name of this program, without its arguments."""
    program = Path(sys.argv[0] if sys.argv else "").name
    if program not in ("dive", "__main__.py"):
        return program or "python"
    return next((f"dive {word}" for word in sys.argv[1:] if word in _COMMANDS), "dive")


def _job() -> str | None:
    """A name of this job, the same for all of its ranks; None without several ranks."""
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return None
    names = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "MASTER_ADDR", "MASTER_PORT")
    parts = [os.environ.get(name, "") for name in names]
    alone = parts[2] in ("", "localhost", "127.0.0.1", "::1")  # then all ranks are on this machine
    return " ".join([*parts, socket.gethostname() if alone else ""])


def _holder(handle: int) -> dict[str, Any] | None:
    try:
        found = json.loads(os.pread(handle, _MOST, 0))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _alive(holder: dict[str, Any] | None) -> bool:
    """Whether the named process may hold the lock, and did not end before."""
    if holder is None or not isinstance(holder.get("pid"), int):
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _refusal(output: Path, holder: dict[str, Any] | None) -> str:
    if holder is None or not _alive(holder):
        who = "another process"
    else:
        where = f"process {holder['pid']} on {holder.get('host')!s:.100}"
        who = "this process itself" if holder["pid"] == os.getpid() else where
        who += f" ({holder.get('command')!s:.100}), since {holder.get('since')!s:.40}"
    return f"{output} is being written by {who}; wait until it has ended, or write somewhere else"


def _await_first_rank(output: Path, lock: Path) -> None:
    """Wait until the lock file names this job; raise DiveError where it names another one.

    Where no lock file appears (no shared disk) the first rank alone decides.
    """
    ends, foreign = time.monotonic() + _RANKS_WAIT, 0.0
    while time.monotonic() < ends:
        try:
            handle = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            holder = None
        else:
            holder = _holder(handle)
            os.close(handle)
        if holder is not None and holder.get("job") == _job():
            return
        foreign = foreign + 0.05 if _alive(holder) else 0.0
        if foreign > 5 * _SETTLES:  # the first rank raises the same error
            raise DiveError(_refusal(output, holder))
        time.sleep(0.05)


def _let_go(lock: Path, handle: int | None, made: list[Path], owner: int) -> None:
    if handle is None or os.getpid() != owner:  # a forked child has closed its handles
        return
    with _guard:
        _held.pop(lock, None)
    with contextlib.suppress(OSError):
        if _is_at(handle, lock):
            os.unlink(lock)  # while it is locked, so that a waiting process sees the removal
    with contextlib.suppress(OSError):
        os.close(handle)
    _remove(made)


def _remove(made: list[Path]) -> None:
    """Remove the folders that were created for the lock and are empty."""
    for folder in reversed(made):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _forget_in_child() -> None:
    """Close the locks in a forked child, which may outlive its parent."""
    global _guard
    _guard = threading.RLock()
    for handle, _ in _held.values():
        with contextlib.suppress(OSError):
            os.close(handle)  # not unlocked: the parent holds the lock
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _guard.acquire(),
        after_in_parent=lambda: _guard.release(),
        after_in_child=_forget_in_child,
    )
