"""The distinct values of a film, so that a mapping is computed for up to 65,536 values.

A film has up to 100 million pixels.
"""

import numpy as np

_MOST = 1 << 16  # range of stored values up to which they are found by counting
_STRIP = 1 << 20  # pixels


class Levels:
    """The distinct values of `stored`, integers of any shape, in ascending order.

    Args:
        padding: mask of pixels to ignore, bool in the shape of `stored`; or None.

    Attributes:
        values: [N], the distinct values, including those of the padding.
        counts: int64 [N], number of pixels with each value, without the padding.
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
        """Put the result for each value ([N]) at its pixels, in the shape of `stored`."""
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
    """`np.bincount` of integers below `size`, without copying all values as int64."""
    flat, counts = values.reshape(-1), np.zeros(size, np.int64)
    for start in range(0, flat.size, _STRIP):
        counts += np.bincount(flat[start : start + _STRIP], minlength=size)
    return counts
