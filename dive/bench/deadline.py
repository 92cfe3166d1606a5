"""An end to a run that holds whatever the machine does."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OutOfTime(BaseException):
    """The time of the run is up; no Exception, so that nothing takes it for a fault of its own."""


class Deadline:
    """`seconds` from `started` (of time.monotonic()), less what is not seen from inside.

    That is the interpreter's start, printing and leaving.
    Inside `bound` the work in hand is broken off by a timer signal where there is one (the main
    thread, not Windows); elsewhere it ends between two rounds.
    """

    def __init__(self, seconds: float, started: float) -> None:
        self.end = started + seconds - min(4.0, seconds / 5)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Raises `OutOfTime` at the end, or at once where it has passed."""
        left = self.left
        if left <= 0:
            raise OutOfTime
        if not (
            hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
        ):
            yield
            return
        before = signal.signal(signal.SIGALRM, _ring)
        started, waiting = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, left)[0]
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if waiting:  # somebody else's alarm goes on
                passed = time.monotonic() - started
                signal.setitimer(signal.ITIMER_REAL, max(1e-3, waiting - passed))


def _ring(_signal: int, _frame: Any) -> None:
    raise OutOfTime
