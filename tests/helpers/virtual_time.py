"""A clock that moves only when a test says so, in place of `time` and of the timer signal."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from dive.bench.deadline import OutOfTime


class VirtualTime:
    """Stands in for the module `time`, and for `bound`, which here needs no signal.

    What a busy machine does in between takes no time by it, so that what is tested is decided by
    the seconds that the test gives, whatever else runs.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self._bounds: list[float] = []

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        """Moves on; raises `OutOfTime` at the first bound on the way, as the signal would."""
        end = self.now + seconds
        first = min(self._bounds, default=end)
        if first < end:
            self.now = max(self.now, first)
            raise OutOfTime
        self.now = end

    @contextmanager
    def bound(self, until: float) -> Iterator[None]:
        """`deadline.bound` by this clock."""
        if until <= self.now:
            raise OutOfTime
        self._bounds.append(until)
        try:
            yield
        finally:
            self._bounds.pop()

    def replace_in(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        """Gives the modules this clock, and this `bound` where they have one."""
        for module in modules:
            monkeypatch.setattr(module, "time", self)
            if hasattr(module, "bound"):
                monkeypatch.setattr(module, "bound", self.bound)
