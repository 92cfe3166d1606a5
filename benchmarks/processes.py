"""A command in its own process group, with a time limit and its output in a file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

LATE = 124  # exit status when the time was over, as of timeout(1)
_GRACE = 6.0  # seconds from SIGTERM to SIGKILL


def bounded(
    command: list[str],
    seconds: float,
    log: Path,
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    grace: float = _GRACE,
) -> int:
    """Runs a command; returns LATE if out of time, 127 if it cannot start, 128 + N for signal N.

    log: its output is appended there. grace: seconds from SIGTERM to SIGKILL.
    Processes that the command left in its group are ended with it: a surviving worker would hold
    memory of the GPU.
    """
    with log.open("ab") as to:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            to.write(f"{error}\n".encode())
            return 127
        late = True
        try:
            late = not _ended(process, seconds)
        finally:  # also if this process is terminated
            _end_group(process, grace)
    try:
        status = process.wait(10)
    except subprocess.TimeoutExpired:  # held by a driver
        return LATE
    return LATE if late else 128 - status if status < 0 else status


def _ended(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether the process ends by itself in time. It is not reaped: its pid stays reserved."""
    end = time.monotonic() + seconds
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _end_group(process: "subprocess.Popen[bytes]", grace: float) -> None:
    """Ends the group of a leader that is not reaped, so that its pid cannot be another's."""
    with suppress(ProcessLookupError, PermissionError):
        if not _ended(process, 0):
            os.killpg(process.pid, signal.SIGTERM)
            _ended(process, grace)
        os.killpg(process.pid, signal.SIGKILL)


def end_with_children() -> None:
    """Makes SIGTERM end this process by an exception, so that what `bounded` started ends, too.

    Process groups do not nest: one has to be ended by the process that made it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]
