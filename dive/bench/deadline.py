"""A deadline of a run that holds under any load of the machine."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = 0.02  # seconds until the next check while an import is in progress


class OutOfTime(BaseException):
    """The time of the run is up. Not an Exception, so that no handler takes it for a failure."""


class Deadline:
    """`seconds` from `started` (of time.monotonic()), less what the run itself cannot measure.

    That is the start of the interpreter, printing and exit.
    """

    def __init__(self, seconds: float, started: float) -> None:
        self.end = started + seconds - min(4.0, seconds / 5)

    @property
    def left(self) -> float:
        """The seconds left."""
        return self.end - time.monotonic()


@contextmanager
def bound(until: float) -> Iterator[None]:
    """Raises `OutOfTime` at `until` (of time.monotonic()), or at once where it has passed.

    A timer signal interrupts the work inside where signals work (the main thread, not Windows);
    elsewhere it ends between two rounds. No signal is delivered before a call of compiled code
    returns, so such calls should be short; an import in progress is completed. Bounds may be
    nested.
    """
    left = until - time.monotonic()
    if left <= 0:
        raise OutOfTime
    if not (hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()):
        yield
        return
    waiting = signal.getitimer(signal.ITIMER_REAL)[0]
    if 0 < waiting < left and signal.getsignal(signal.SIGALRM) is _ring:
        yield  # the enclosing bound comes first
        return
    before = signal.signal(signal.SIGALRM, _ring)
    started, waiting = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, left)[0]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if waiting:  # another alarm was set before: it continues
            passed = time.monotonic() - started
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, waiting - passed))


def _ring(_signal: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            # a module that is interrupted stays half imported for the rest of the process
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            return
        frame = frame.f_back
    raise OutOfTime
