"""Modes in which a model runs while dive works with it; afterwards they are restored.

A flag of its modules or parameters stays False as long as any thread holds it.
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
# by model and flag: how many hold it, and the parts on which it was True
_holders: "WeakKeyDictionary[nn.Module, dict[str, tuple[int, list[Any]]]]" = WeakKeyDictionary()


@contextmanager
def held(model: nn.Module, flag: str, parts: Sequence[Any]) -> Iterator[None]:
    """Hold `flag` at False on these parts of a model.

    The last thread that holds it restores it, so that no other one sees it True during its work.
    """
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
    """Hold the model in eval mode, with nothing trainable and outside autocast.

    PEFT leaves its layers trainable and in training mode, whose dropout would be in all hidden
    states.
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
    """Hold the model in eval mode and outside autocast, until the last thread leaves."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(held(model, "training", list(model.modules())))
        yield
