"""Tables of labels: 1 positive, 0 negative, -1 uncertain, blank or "nan" not mentioned."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from dive.data.absent import is_absent
from dive.data.datasets.paths import bulk
from dive.data.datasets.tables import header_of, read_table, record_location
from dive.data.skipping import Skipping
from dive.errors import DiveError
from dive.errors.private import kind_of

_VALUES = {
    "1.0": 1.0,
    "1": 1.0,
    "0.0": 0.0,
    "0": 0.0,
    "-1.0": -1.0,
    "-1": -1.0,
}


class LabelTable:
    """Labels by the column `key`, for the `wanted` keys; blank ones are left out.

    All columns except `key` and those of `also` are labels. Records are kept as text and parsed on
    access, so that the first study does not wait for the last record. Cells with "nan" or the like
    are blank, and counted in `placeholders`. A damaged file is bad input like any other: with
    `on_error="skip"` it adds one entry, and the labels before the damage are kept.
    """

    @bulk()
    def __init__(
        self,
        path: Path,
        key: str,
        skipping: Skipping,
        wanted: Callable[[str], bool],
        also: Iterable[str] = (),
        placeholders: Counter[str] | None = None,
    ) -> None:
        self._path, self._skipping = path, skipping
        self._placeholders = Counter() if placeholders is None else placeholders
        self._names: list[str] = []
        self._records: dict[str, tuple[int, str]] = {}
        try:
            header = header_of(path)
            self._names = [name for name in header if name and name not in (key, *also)]
            for number, cells in read_table(path, [key, *self._names], skipping):
                if wanted(cells[0]):
                    self._records[cells[0]] = (number, "\0".join(cells[1:]))
        except DiveError as error:
            if skipping.on_error == "fail":
                raise
            skipping.skip_or_raise(None, path.name, error)

    def get(self, key: str) -> dict[str, float] | None:
        """The labels of a key, None if it has no record."""
        found = self._records.pop(key, None)
        if found is None:
            return None
        number, cells = found
        labels: dict[str, float] = {}
        for name, cell in zip(self._names, cells.split("\0"), strict=True):
            if not cell:
                continue
            value = _VALUES.get(cell)
            if value is None and is_absent(cell):
                self._placeholders["label"] += 1
                continue
            if value is None:
                self._skipping.skip_or_raise(
                    None,
                    f"{record_location(self._path, number)}, column {name!r}",
                    f"is {kind_of(cell)}, want 1.0, 0.0, -1.0 or nothing",
                )
                continue
            labels[name] = value
        return labels
