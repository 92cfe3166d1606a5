"""A sequence of studies that is read lazily."""

from collections.abc import Iterator, Sequence
from typing import overload

from dive.data.reading_summary import ReadingSummary
from dive.data.study import Study
from dive.errors import DiveError
from dive.errors.renamed import renamed_attribute


class Studies(Sequence[Study]):
    """A sequence of studies that are read on first use, and kept.

    Iteration yields the first study as soon as it is read; `len()` and indexing from the end read
    everything, `bool()` one study. `summary` counts what was read so far.

    Raises:
        DiveError: bad input, when it is read and at every later attempt.
    """

    def __init__(self, source: Iterator[Study], summary: ReadingSummary) -> None:
        self.summary = summary
        self._source: Iterator[Study] | None = source
        self._read: list[Study] = []
        self._error: DiveError | None = None

    report = renamed_attribute("report", "summary")  # the old name

    def read(self) -> "Studies":
        """Read everything, and return self."""
        while self._more():
            pass
        return self

    def _more(self) -> bool:
        if self._error is not None:
            raise self._error
        if self._source is None:
            return False
        try:
            self._read.append(next(self._source))
        except StopIteration:
            self._source = None
            return False
        except DiveError as error:
            self._error = error
            raise
        return True

    def __iter__(self) -> Iterator[Study]:
        index = 0
        while index < len(self._read) or self._more():
            yield self._read[index]
            index += 1

    def __len__(self) -> int:
        return len(self.read()._read)

    def __bool__(self) -> bool:
        return bool(self._read) or self._more()

    @overload
    def __getitem__(self, index: int) -> Study: ...
    @overload
    def __getitem__(self, index: slice) -> list[Study]: ...
    def __getitem__(self, index: int | slice) -> Study | list[Study]:
        if isinstance(index, slice):
            return self.read()._read[index]
        while not 0 <= index < len(self._read):
            if not self._more():
                break
        return self._read[index]
