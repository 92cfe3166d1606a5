"""Which studies are still to be written by actors that may die, and in groups of what size.

An actor that dies takes the studies of its group with it, of which one may be the reason. They are
tried again in a smaller group, and then alone, so that no study is blamed for a neighbour's deaths.
"""

from collections import deque
from collections.abc import Iterable

from dive.data.study import Study

TRIES = 3  # deaths of its actor after which a study is left out, the last of them alone
GROUP = 4  # batches in a group: one drains its slots once


class Attempts:
    """The studies without a result, in order, and how often each one's actor died.

    Args:
        studies: with ids of their own.
        batch_size: reports that an engine decodes at once.
        actors: how many actors share the studies.
    """

    def __init__(self, studies: Iterable[Study], batch_size: int, actors: int) -> None:
        self._waiting = deque(studies)
        self._again: deque[list[Study]] = deque()
        self._deaths: dict[str, int] = {}
        self._batch_size, self._actors = batch_size, actors

    @property
    def waiting(self) -> bool:
        """Whether there is a group that no actor has."""
        return bool(self._waiting or self._again)

    def group(self) -> list[Study]:
        """The studies of the next call of an actor; [] where none waits. What may kill its actor
        again comes last: the others are written first."""
        if not self._waiting:
            return self._again.popleft() if self._again else []
        left = len(self._waiting)
        most = GROUP * self._batch_size
        even = -(-left // self._actors)
        size = min(most, max(-(-left // (2 * self._actors)), min(self._batch_size, even)))
        return [self._waiting.popleft() for _ in range(size)]

    def return_group(self, group: Iterable[Study]) -> None:
        """Take back a group that nobody began."""
        group = list(group)
        if any(study.id in self._deaths for study in group):
            self._again.appendleft(group)  # as it was, alone perhaps
        else:
            self._waiting.extendleft(reversed(group))

    def died(self, group: Iterable[Study]) -> list[Study]:
        """Note that an actor died over these studies, which have no result.

        Returns those among them that are given up: their actor died `TRIES` times.
        """
        given_up: list[Study] = []
        once: list[Study] = []
        alone: list[Study] = []
        for study in group:
            deaths = self._deaths[study.id] = self._deaths.get(study.id, 0) + 1
            (given_up if deaths >= TRIES else alone if deaths > 1 else once).append(study)
        size = max(1, self._batch_size // 2)
        self._again.extend(once[at : at + size] for at in range(0, len(once), size))
        self._again.extend([study] for study in alone)
        return given_up
