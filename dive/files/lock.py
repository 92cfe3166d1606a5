"""One process at a time on an output: a lock beside it that its holder's death releases.

The lock of a file is `.NAME.lock` beside it (beside what a link leads to), that of a folder is
`.lock` in it. It is the system's own (`flock`; over NFS the server's), so a process that is killed
holds nothing any more, and the file that it leaves is no obstacle; who ends well removes it. In the
file stands who holds it, for whoever is refused: process, machine, command, and since when. A file
of that name that says anything else is somebody's own: it is refused, and stays as it is.

A file system without locks (some mounts of Lustre, NFS without its lock daemon) is said once, in a
warning, and the run goes on: the checks before every rename are then all that is left.
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

# what a file system without locks answers
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_SETTLES = 0.5  # seconds in which a holder has written who it is, or is gone
_RANKS_WAIT = 30.0  # seconds for the first rank to come to the lock
_FACTS = ("pid", "host", "command", "since", "job")  # what a lock's file says, in this order
_MOST = 4096  # bytes that are read of it
_COMMANDS = {"demo", "distill", "generate", "evaluate", "inspect", "bench", "doctor"}

_guard = threading.RLock()  # a finalizer may come in at any line
_held: dict[Path, tuple[int, dict[str, Any]]] = {}  # the lock's handle, and who holds it
_warned: set[int] = set()


class Held:
    """An output that this process holds: until `release`, the end of a `with`, or its death.

    path: the lock's file. output: what it is for. facts: who holds it, as the file says.
    """

    def __init__(self, output: Path, path: Path, handle: int | None, made: list[Path]) -> None:
        self.output = output
        self.path = path
        self.facts = {} if handle is None else _sign(handle)
        # also where nobody releases it: at the end of the program, or when it is forgotten
        self._end = weakref.finalize(self, _let_go, path, handle, made, os.getpid())

    def release(self) -> None:
        """Let others have it; the lock's file is removed. A second time nothing happens."""
        self._end()

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def hold_file(path: str | Path, *, wait: float = 0.0) -> Held:
    """Hold a file that is to be written, which need not be there yet, nor its folder.

    wait: seconds for another holder to end.

    Raises:
        DiveError: another holds it (who, and since when), in this process or any other; its folder
            cannot be written.
    """
    return _hold(Path(path), lock_of(path), wait)


def lock_of(path: str | Path) -> Path:
    """The lock's file of a file, whatever links lead to that."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.lock")


def hold_folder(path: str | Path, *, wait: float = 0.0, ranks: bool = False) -> Held:
    """Hold a folder that is to be filled, which is made if it is not there; see `hold_file`.

    ranks: under several ranks the first one holds it for all of them. The others only see to it
        that it does: where another job has the folder, they end with the same error.
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
    """The lock, or who has it as far as that is known."""
    with _guard:  # also no process is forked that would inherit the lock unseen
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
    """The lock's file, open; None where it went away meanwhile. Notes the folders it makes."""
    try:
        for folder in (*reversed(lock.parent.parents), lock.parent):
            if not folder.exists():
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    made.append(folder)
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe of that name does not hang
        try:
            handle = os.open(lock, flags | os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            # another user's, who was killed: it can be locked all the same
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
    """What bears the lock's name, if it is none that can be opened as a file."""
    try:
        mode = os.lstat(lock).st_mode
    except OSError:
        return None
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "no file"


def _taken(output: Path, lock: Path, why: str) -> DiveError:
    return DiveError(
        f"cannot write {output}: {lock} {why}, and that name is its lock's: rename it, or write "
        "somewhere else"
    )


def _check_own(output: Path, lock: Path, handle: int) -> None:
    """DiveError where the file, which nobody locks, holds what no process of ours wrote there."""
    data = os.pread(handle, _MOST + 1, 0)
    if not data.strip(b"\0"):  # new, or what a power cut made of it
        return
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        # a full disk cuts off what is being written
        ours = data.startswith(b'{"pid": ') and len(data) < _MOST and b"\n" not in data
    else:
        ours = isinstance(found, dict) and tuple(found) == _FACTS
    if not ours:
        raise _taken(output, lock, "holds what dive did not write")


def _lock(handle: int, lock: Path) -> bool:
    """Whether it is ours now: locked, and still the file of that name."""
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
                "a second process from writing the same output; see to it yourself",
                stacklevel=2,
            )
        return True
    return _is_at(handle, lock)  # whoever held it before may have removed it


def _is_at(handle: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(lock))
    except OSError:
        return False


def _sign(handle: int) -> dict[str, Any]:
    """Who holds it, into the lock's file; a full disk harms only that, and not the lock."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    values = (os.getpid(), socket.gethostname(), _command(), since, _job())
    facts = dict(zip(_FACTS, values, strict=True))
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(facts) + "\n").encode("utf-8"), 0)
    return facts


def _command() -> str:
    """What this program is called, without what it is called with."""
    program = Path(sys.argv[0] if sys.argv else "").name
    if program not in ("dive", "__main__.py"):
        return program or "python"
    return next((f"dive {word}" for word in sys.argv[1:] if word in _COMMANDS), "dive")


def _job() -> str | None:
    """What the ranks of one job have in common, and no other job has."""
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return None
    names = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "MASTER_ADDR", "MASTER_PORT")
    parts = [os.environ.get(name, "") for name in names]
    alone = parts[2] in ("", "localhost", "127.0.0.1", "::1")  # then all are on this machine
    return " ".join([*parts, socket.gethostname() if alone else ""])


def _holder(handle: int) -> dict[str, Any] | None:
    try:
        found = json.loads(os.pread(handle, _MOST, 0))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _alive(holder: dict[str, Any] | None) -> bool:
    """Whether it may be the one that holds the lock, and not one that left its name there."""
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
    """Until the first rank of this job holds the lock, as its file says; DiveError where another
    job does. Where nothing is seen of either (no shared disk) the first rank alone decides."""
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
        if foreign > 5 * _SETTLES:  # the first rank is refused, too
            raise DiveError(_refusal(output, holder))
        time.sleep(0.05)


def _let_go(lock: Path, handle: int | None, made: list[Path], owner: int) -> None:
    if handle is None or os.getpid() != owner:  # a forked child's are closed already
        return
    with _guard:
        _held.pop(lock, None)
    with contextlib.suppress(OSError):
        if _is_at(handle, lock):
            os.unlink(lock)  # while it is locked: whoever waits sees that it is gone
    with contextlib.suppress(OSError):
        os.close(handle)
    _remove(made)


def _remove(made: list[Path]) -> None:
    """Folders that were made for the lock, where nothing came into them."""
    for folder in reversed(made):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _forget_in_child() -> None:
    """A forked child (that reads images, say) may outlive its parent, and must not hold on."""
    global _guard
    _guard = threading.RLock()
    for handle, _ in _held.values():
        with contextlib.suppress(OSError):
            os.close(handle)  # and no unlocking: it is the parent's
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _guard.acquire(),
        after_in_parent=lambda: _guard.release(),
        after_in_child=_forget_in_child,
    )
