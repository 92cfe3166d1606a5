"""Loss and accuracy by token class, over forwards and ranks."""

from typing import Any

import torch
from torch import Tensor

from dive import ops
from dive.decisive.tokens import CLASS_NAMES


class ClassMeter:
    """Loss and accuracy of the tokens of each class, summed up between two lines of log."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # [3, classes]: loss, hits, tokens

    def add(self, parts: ops.DecisiveLoss) -> None:
        assert parts.class_count is not None  # the student passes token_class
        assert parts.class_loss is not None and parts.class_accuracy is not None
        count = parts.class_count.double()
        mean = torch.stack([parts.class_loss.double(), parts.class_accuracy.double()])
        rows = torch.cat([torch.where(count > 0, mean, 0.0) * count, count[None]])
        self._sums = rows if self._sums is None else self._sums + rows

    def take(self, prefix: str = "", reduce: Any = lambda sums: sums) -> dict[str, float]:
        """Means by class since the last time, of those classes that there were.

        reduce: sums [3, classes] over ranks. All of them call it, one that had no row with zeros:
        the others wait for it.
        """
        sums = torch.zeros(3, len(CLASS_NAMES)) if self._sums is None else self._sums
        self._sums = None
        loss, hits, count = reduce(sums).tolist()
        found = {}
        for name, a, b, n in zip(CLASS_NAMES, loss, hits, count, strict=True):
            if n:
                key = name.lower()
                found[f"{prefix}loss_{key}"] = a / n
                found[f"{prefix}accuracy_{key}"] = b / n
        return found
