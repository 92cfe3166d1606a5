"""The lock of a model: dive's own calls of it run one after the other, in the order of arrival.

A model may keep state from a forward (Qwen-VL its position offsets), which serves one call at a
time.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from dive.backbone.structure import decoder_layers, unwrap
from dive.errors import DiveError


class FairLock:
    """A lock that its owner may acquire again, and that waiting threads get in order of arrival."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[object] = deque()

    def acquire(self) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._owner != me:
                ticket = object()
                self._waiting.append(ticket)
                try:
                    while self._owner is not None or self._waiting[0] is not ticket:
                        self._changed.wait()
                    self._owner = me
                finally:
                    self._waiting.remove(ticket)
                    self._changed.notify_all()
            self._depth += 1

    def release(self) -> None:
        with self._changed:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._changed.notify_all()


_registry = threading.RLock()
_locks: "WeakKeyDictionary[nn.Module, FairLock]" = WeakKeyDictionary()


@contextlib.contextmanager
def model_lock(backbone_or_model: Any) -> Iterator[None]:
    """Run dive's calls of the model in this thread alone while the context is open.

    Must not be held over a `yield` of a generator, or while a user's iterable is read: both may
    take any time.
    """
    model: nn.Module = unwrap(backbone_or_model)
    with contextlib.suppress(DiveError):  # nothing else shares a model without known layers
        model = decoder_layers(model)[0]  # which a model and its base share
    with _registry:
        lock = _locks.get(model)
        if lock is None:
            lock = _locks[model] = FairLock()
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
