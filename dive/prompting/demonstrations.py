"""The studies that are shown before a query: never itself, nor one of the same patient."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from itertools import islice

from dive.data.study import Study
from dive.errors import DiveError


class Demonstrations:
    """The studies that are shown before a query: fixed ones, or `count` drawn from a pool.

    A draw is a function of (seed, epoch, id of the query), so that a resumed training repeats it.
    A study is never its own demonstration, nor is one of the same patient.
    """

    def __init__(
        self,
        pool: Sequence[Study],
        count: int | None = None,
        *,
        seed: int = 0,
        redraw: bool = False,
    ) -> None:
        """`count` None: the whole pool is shown, in its order. redraw: draw anew in every epoch."""
        if count is not None and count < 1:
            raise DiveError(f"demonstrations is {count}, want 1 or more")
        if not pool:
            raise DiveError("demonstrations: the list is empty, want one study or more")
        self.pool = list(pool)
        self.count = count
        self.seed = seed
        self.redraw = redraw and count is not None
        # indices in the pool by id and by patient, so that a draw does not go through the pool
        self._indices: dict[tuple[str, str], list[int]] = {}
        for index, one in enumerate(self.pool):
            for name in case_names(one):
                self._indices.setdefault(name, []).append(index)

    def of(self, study: Study, epoch: int = 0) -> list[Study]:
        """The demonstrations for this query, in the order in which they are shown."""
        return [self.pool[index] for index in islice(self.candidates(study, epoch), self.count)]

    def own(self, study: Study) -> dict[int, str]:
        """Indices in the pool that are never shown before this query: itself, and its patient's.

        In the pool's order, each with what is the same: "id" or "patient".
        """
        found: dict[int, str] = {}
        for name in case_names(study):
            for index in self._indices.get(name, ()):
                found.setdefault(index, name[0])
        return dict(sorted(found.items()))

    def candidates(self, study: Study, epoch: int = 0) -> Iterator[int]:
        """Yield indices in the pool that may be shown, in the order in which they are tried.

        The first `count` are shown; the next replaces one that cannot be read.
        """
        own = {*self.own(study)}
        if self.count is None:
            yield from (index for index in range(len(self.pool)) if index not in own)
            return
        if len(self.pool) - len(own) < self.count:
            raise DiveError(
                f"{study.where}: want {self.count} demonstrations, and there are "
                f"{len(self.pool) - len(own)} studies of other patients to draw from"
            )
        key = f"{self.seed}/{epoch if self.redraw else 0}/{study.id}"
        digest = hashlib.sha256(key.encode("utf-8")).digest()
        draw = random.Random(digest)
        for index in draw.sample(range(len(self.pool)), self.count + len(own)):
            if index not in own:
                own.add(index)
                yield index
        while len(own) < len(self.pool):
            index = draw.randrange(len(self.pool))
            if index not in own:
                own.add(index)
                yield index


def case_names(study: Study) -> list[tuple[str, str]]:
    """Names that two studies share where they are the same, or of the same patient."""
    names = [("id", study.id)]
    return names if study.patient is None else [*names, ("patient", study.patient)]
