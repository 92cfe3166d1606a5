"""The attachments of each thread or task, per model, and the forwards that threads are running.

A context (`contextvars`) belongs to a thread; asyncio's tasks, `asyncio.to_thread` and
`copy_context` copy it.
"""

import asyncio
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType, MappingProxyType
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

from torch import nn


class ThreadAndTask:
    """The thread, and asyncio task if any, that made this; no copy of a context takes it along."""

    def __init__(self) -> None:
        self.thread = ref(threading.current_thread())
        task = _task()
        self._task = None if task is None else ref(task)

    def is_current(self) -> bool:
        """Whether this thread and task made it."""
        task = None if self._task is None else self._task()
        return (
            self.is_current_thread() and task is _task() and (task is None) == (self._task is None)
        )

    def is_current_thread(self) -> bool:
        return self.thread() is threading.current_thread()


class Own:
    """The attachment of a context, and of its copies, from the start of a `with` to its end.

    Only contexts hold it, so that it lives as long as one of them. ended: the `with` is over.
    """

    def __init__(self, work: Any) -> None:
        # weak: copies of contexts live on, and would keep models alive
        self._work = None if work is None else ref(work)
        self.ended = False
        self.creator = ThreadAndTask()
        self.before: _Entry | None = None  # what the context had before

    @property
    def work(self) -> Any:
        """The attachment; None: an explicit choice of no attachment."""
        return None if self._work is None else self._work()

    def holds(self) -> bool:
        """Whether it still decides what steers the context's forwards."""
        if self.ended or self._work is None:
            return not self.ended
        work = self._work()
        return work is not None and work.state != "gone"


class _Entry(NamedTuple):
    first: "ReferenceType[nn.Module]"
    public: Own | None  # of the user's `with`
    private: Own | None  # of the call of dive that runs inside; it takes precedence


_EMPTY: Mapping[int, _Entry] = MappingProxyType({})
# keyed by the id of a model's first decoder layer
_own: "ContextVar[Mapping[int, _Entry]]" = ContextVar("dive_at_work", default=_EMPTY)


def _entry(first: nn.Module) -> _Entry:
    entry = _own.get().get(id(first))
    return entry if entry is not None and entry.first() is first else _Entry(ref(first), None, None)


def _set(first: nn.Module, public: Own | None, private: Own | None) -> None:
    kept = {
        key: entry
        for key, entry in _own.get().items()
        if entry.first() is not None and key != id(first)
    }
    if public is not None or private is not None:
        kept[id(first)] = _Entry(ref(first), public, private)
    _own.set(kept)


def own_of(first: nn.Module) -> Own | None:
    """The attachment of this context, also of a `with` that is over (`ended`)."""
    _, public, private = _entry(first)
    return private if private is not None and private.holds() else public


def is_private(first: nn.Module) -> bool:
    """Whether `own_of` belongs to a call of dive."""
    private = _entry(first).private
    return private is not None and private.holds()


def put(first: nn.Module, own: Own) -> None:
    """Begins a user's `with` in this context; it takes precedence over a call of dive around it."""
    own.before = _entry(first)
    _set(first, own, None)


def drop(first: nn.Module, own: Own) -> None:
    """Ends a user's `with`: if this context has it, it has again what it had before."""
    entry = _entry(first)
    if entry.public is not own:
        return
    before = own.before
    if before is None or before.first() is not first:
        before = _Entry(ref(first), None, None)
    _set(first, before.public, before.private)


@contextmanager
def private(first: nn.Module, own: Own | None) -> Iterator[None]:
    """Gives a call of dive this inside; None: nothing of the calls around it."""
    before = _entry(first).private
    _set(first, _entry(first).public, own)
    try:
        yield
    finally:
        if own is not None:
            own.ended = True  # copies of this context may live on
        _set(first, _entry(first).public, before)


def frame_of(owner: nn.Module, thread: int) -> FrameType | None:
    """The frame of the innermost forward of this module that a thread is running, if any."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "forward" and frame.f_locals.get("self") is owner:
            return frame
        frame = frame.f_back
    return None


def no_hook(*_ignored: Any) -> None:
    """The hook that a copy of a model has in place of one of the original's attachment."""


def as_no_hook() -> Any:
    """Reconstructs a hook from a copy or pickle, for `__reduce__`: as one that does nothing."""
    return no_hook


def _task() -> Any:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None
