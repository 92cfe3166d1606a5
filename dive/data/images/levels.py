"""The values of a film, each once: what is made of a pixel's value is worked out for 65,536 of them
and not for 100 million pixels."""

import numpy as np

_MOST = 1 << 16  # stored values, from the smallest to the largest, that are told apart by counting
_STRIP = 1 << 20  # pixels


class Levels:
    """The distinct values of `stored`, integers of any shape, in rising order.

    Args:
        padding: where pixels count for nothing, bool in the shape of `stored`; or None.

    Attributes:
        values: [N], the distinct values, those under the padding too.
        counts: int64 [N], how many pixels beside the padding have each.
    """

    def __init__(self, stored: np.ndarray, padding: np.ndarray | None = None) -> None:
        self._stored, self._direct = stored, False
        self._low, high = int(stored.min()), int(stored.max())
        size = high - self._low + 1
        if size > _MOST:
            self.values, self._indices = np.unique(stored, return_inverse=True)
            self._indices = self._indices.reshape(-1)
            given = self._indices if padding is None else self._indices[~padding.reshape(-1)]
            self.counts = counted(given, len(self.values))
            return
        self._direct = True
        flat, every = stored.reshape(-1), np.zeros(size, np.int64)
        seen = every if padding is None else np.zeros(size, np.int64)
        for start in range(0, flat.size, _STRIP):
            some = flat[start : start + _STRIP].astype(np.int64) - self._low
            every += np.bincount(some, minlength=size)
            if padding is not None:
                beside = some[~padding.reshape(-1)[start : start + _STRIP]]
                seen += np.bincount(beside, minlength=size)
        there = np.flatnonzero(every)
        self.values, self.counts = there + self._low, seen[there]
        self._indices = np.zeros(size, np.int64)
        self._indices[there] = np.arange(there.size)

    def spread(self, made: np.ndarray) -> np.ndarray:
        """What was made of each value ([N]), where its pixels are."""
        shape = self._stored.shape
        if not self._direct:
            return made[self._indices].reshape(shape)
        table = made[self._indices]
        flat, shown = self._stored.reshape(-1), np.empty(self._stored.size, made.dtype)
        for start in range(0, flat.size, _STRIP):
            some = flat[start : start + _STRIP].astype(np.int64) - self._low
            shown[start : start + _STRIP] = table[some]
        return shown.reshape(shape)


def counted(values: np.ndarray, size: int) -> np.ndarray:
    """`np.bincount`, which would copy all values as int64, of whole numbers below `size`."""
    flat, counts = values.reshape(-1), np.zeros(size, np.int64)
    for start in range(0, flat.size, _STRIP):
        counts += np.bincount(flat[start : start + _STRIP], minlength=size)
    return counts
