"""Flags of a model's modules or parameters that are held down while anybody wants them down."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_changes = threading.RLock()
# by model and flag: how many hold it, and whose it was
_holders: "WeakKeyDictionary[nn.Module, dict[str, tuple[int, list[Any]]]]" = WeakKeyDictionary()


@contextmanager
def held(model: nn.Module, flag: str, parts: Sequence[Any]) -> Iterator[None]:
    """`flag` is False on these parts of a model. What had it gets it back when the last thread that
    holds it leaves: none of them finds it up in the middle of its work."""
    with _changes:
        raised = [part for part in parts if getattr(part, flag)]
        of_model = _holders.setdefault(model, {})
        count, theirs = of_model.get(flag, (0, []))
        of_model[flag] = count + 1, [*theirs, *raised]
        for part in raised:
            setattr(part, flag, False)
    try:
        yield
    finally:
        with _changes:
            count, theirs = _holders[model][flag]
            if count > 1:
                _holders[model][flag] = count - 1, theirs
            else:
                del _holders[model][flag]
                for part in theirs:
                    setattr(part, flag, True)
