"""What each thread or task has for its own on a model, and where its threads are in a forward.

A context is a thread's; asyncio's tasks, `asyncio.to_thread` and `copy_context` copy it.
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
    """A thread, and its asyncio task if it runs one: which no copy of a context takes along."""

    def __init__(self) -> None:
        self.thread = ref(threading.current_thread())
        task = _task()
        self._task = None if task is None else ref(task)

    def is_current(self) -> bool:
        """Whether this is where it was made."""
        task = None if self._task is None else self._task()
        return (
            self.is_current_thread() and task is _task() and (task is None) == (self._task is None)
        )

    def is_current_thread(self) -> bool:
        return self.thread() is threading.current_thread()


class Own:
    """What a context has for its own from a `with`'s begin to its end; copies of the context too.

    Contexts alone hold it, so that it lives as long as one of them. ended: the `with` has.
    """

    def __init__(self, work: Any) -> None:
        # weak: contexts are copied and kept, and would keep models alive
        self._work = None if work is None else ref(work)
        self.ended = False
        self.creator = ThreadAndTask()
        self.before: _Entry | None = None  # what the context had

    @property
    def work(self) -> Any:
        """None: for sure nothing is to be at work."""
        return None if self._work is None else self._work()

    def holds(self) -> bool:
        """Whether it still says what is to be at work."""
        if self.ended or self._work is None:
            return not self.ended
        work = self._work()
        return work is not None and work.state != "gone"


class _Entry(NamedTuple):
    first: "ReferenceType[nn.Module]"
    public: Own | None  # of the user's `with`
    private: Own | None  # of the call of dive's that runs inside; it goes before


_EMPTY: Mapping[int, _Entry] = MappingProxyType({})
# by the id of a model's first decoder layer
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
    """What this context has of its own. Of a `with` that is over it tells, too (`ended`)."""
    _, public, private = _entry(first)
    return private if private is not None and private.holds() else public


def is_private(first: nn.Module) -> bool:
    """Whether that is a call's of dive's."""
    private = _entry(first).private
    return private is not None and private.holds()


def put(first: nn.Module, own: Own) -> None:
    """A user's `with` begins in this context; it goes before what dive's call around it has."""
    own.before = _entry(first)
    _set(first, own, None)


def drop(first: nn.Module, own: Own) -> None:
    """This context, if it has this, has again what it had before."""
    entry = _entry(first)
    if entry.public is not own:
        return
    before = own.before
    if before is None or before.first() is not first:
        before = _Entry(ref(first), None, None)
    _set(first, before.public, before.private)


@contextmanager
def private(first: nn.Module, own: Own | None) -> Iterator[None]:
    """A call of dive's has this inside; None: what calls around it have is not its own."""
    before = _entry(first).private
    _set(first, _entry(first).public, own)
    try:
        yield
    finally:
        if own is not None:
            own.ended = True  # copies of this context may live on
        _set(first, _entry(first).public, before)


def frame_of(owner: nn.Module, thread: int) -> FrameType | None:
    """The innermost forward of this module that a thread is in."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "forward" and frame.f_locals.get("self") is owner:
            return frame
        frame = frame.f_back
    return None


def no_hook(*_ignored: Any) -> None:
    """What a copy of a model has in place of a hook of the model's own attachment."""


def as_no_hook() -> Any:
    """For `__reduce__` of hooks: what copies and pickles make of them."""
    return no_hook


def _task() -> Any:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None
