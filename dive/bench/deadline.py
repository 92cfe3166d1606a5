"""An end to a run that holds whatever the machine does."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = 0.02  # seconds after which an import in progress is looked for again


class OutOfTime(BaseException):
    """The time of the run is up; no Exception, so that nothing takes it for a fault of its own."""


class Deadline:
    """`seconds` from `started` (of time.monotonic()), less what is not seen from inside.

    That is the interpreter's start, printing and leaving.
    """

    def __init__(self, seconds: float, started: float) -> None:
        self.end = started + seconds - min(4.0, seconds / 5)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


@contextmanager
def bound(until: float) -> Iterator[None]:
    """Raises `OutOfTime` at `until` (of time.monotonic()), or at once where it has passed.

    The work inside is broken off by a timer signal where there is one (the main thread, not
    Windows); elsewhere it ends between two rounds. No signal comes through before a call of
    compiled code returns, so that those are to be short; an import is let come to its end.
    Bounds may lie in each other.
    """
    left = until - time.monotonic()
    if left <= 0:
        raise OutOfTime
    if not (hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()):
        yield
        return
    waiting = signal.getitimer(signal.ITIMER_REAL)[0]
    if 0 < waiting < left and signal.getsignal(signal.SIGALRM) is _ring:
        yield  # the bound around this one comes first
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


def _ring(_signal: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            # a module that is broken off stays half imported for the rest of the process
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            return
        frame = frame.f_back
    raise OutOfTime
