"""Turns at a model: dive's own calls of it come one after the other, in the order of their asking.

What a model notes down in a forward (Qwen-VL its offsets of positions) is for one call at a time.
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


class Turns:
    """A lock that a thread may take again while it has it, and that is given in order."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[object] = deque()

    def take(self) -> None:
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

    def give(self) -> None:
        with self._changed:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._changed.notify_all()


_registry = threading.RLock()
_turns: "WeakKeyDictionary[nn.Module, Turns]" = WeakKeyDictionary()


@contextlib.contextmanager
def turn(backbone_or_model: Any) -> Iterator[None]:
    """This thread alone runs the model among dive's calls of it, inside.

    Not to be held over a `yield` of a generator, nor while a user's iterable is read: both may take
    as long as they like.
    """
    model: nn.Module = unwrap(backbone_or_model)
    with contextlib.suppress(DiveError):  # nothing else shares a model without known layers
        model = decoder_layers(model)[0]  # which a model and its base share
    with _registry:
        turns = _turns.get(model)
        if turns is None:
            turns = _turns[model] = Turns()
    turns.take()
    try:
        yield
    finally:
        turns.give()
