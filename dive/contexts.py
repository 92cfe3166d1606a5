"""What each thread or task has for its own on a model, and where its threads are in a forward."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType, MappingProxyType
from typing import Any, NamedTuple, Protocol
from weakref import ReferenceType, ref

from torch import nn


class Owned(Protocol):
    """What a context may have. serial: counts how often a context took it for its own."""

    state: str
    serial: int


class _Entry(NamedTuple):
    # weak: contexts are copied and kept, and would keep models alive
    first: "ReferenceType[nn.Module]"
    work: "ReferenceType[Any] | None"  # None: nothing is to be at work
    serial: int


_EMPTY: Mapping[int, _Entry] = MappingProxyType({})
# by the id of a model's first decoder layer
_own: "ContextVar[Mapping[int, _Entry]]" = ContextVar("dive_at_work", default=_EMPTY)


def own_of(first: nn.Module) -> tuple[bool, Any]:
    """Whether this context has something of its own (or, for sure, nothing), and what."""
    entry = _own.get().get(id(first))
    if entry is None or entry.first() is not first:
        return False, None
    if entry.work is None:
        return True, None
    work = entry.work()
    if work is None or work.state == "gone" or work.serial != entry.serial:
        return False, None  # it has ended, or is another context's by now
    return True, work


def holds(first: nn.Module, work: Owned) -> bool:
    """Whether it was this context that took it."""
    entry = _own.get().get(id(first))
    return entry is not None and entry.work is not None and entry.work() is work


def put(first: nn.Module, work: Owned | None) -> None:
    """This context's own from now on."""
    alive = {key: entry for key, entry in _own.get().items() if entry.first() is not None}
    serial = 0 if work is None else work.serial
    entry = _Entry(ref(first), None if work is None else ref(work), serial)
    _own.set({**alive, id(first): entry})


def drop(first: nn.Module) -> None:
    """This context has nothing of its own from now on, and takes what there is for all."""
    _own.set({key: entry for key, entry in _own.get().items() if key != id(first)})


@contextmanager
def own(first: nn.Module, work: Owned | None) -> Iterator[None]:
    """This context's own inside."""
    before = _own.get().get(id(first))
    put(first, work)
    try:
        yield
    finally:
        if before is None:
            drop(first)
        else:
            _own.set({**_own.get(), id(first): before})


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
