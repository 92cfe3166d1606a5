"""The modes that a model runs in while dive works with it; afterwards it is as it was.

A flag of its modules or parameters is held down for as long as any thread wants it down.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dive.errors import DiveError

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


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, with nothing trainable and outside autocast; then as it was.

    PEFT leaves its layers in training mode, whose dropout would be in every state, and trainable.
    """
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise DiveError(
            "the backbone's weights were made under torch.inference_mode, so nothing can be "
            "learnt through them: load it outside"
        )
    with evaluating(model), held(model, "requires_grad", list(model.parameters())):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and outside autocast; then as it was, when no thread wants it so."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(held(model, "training", list(model.modules())))
        yield
