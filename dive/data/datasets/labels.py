"""Tables of labels: 1 positive, 0 negative, -1 uncertain, blank or "nan" not mentioned."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from dive.data.absent import is_absent
from dive.data.datasets.paths import bulk
from dive.data.datasets.tables import header_of, read_table, row_source
from dive.data.skipping import Trouble
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
    """Labels by the column `key`, for the keys that are `wanted`; blank ones are left out.

    Every column but `key` and those of `also` is a label. Rows are kept as text and turned into
    numbers when they are asked for, so that the first study does not wait for the last row; cells
    that hold "nan" or the like are blank, and counted in `placeholders`. A
    damaged file is bad input like any other: with `on_error="skip"` it leaves one entry, and the
    labels read before the damage.
    """

    @bulk()
    def __init__(
        self,
        path: Path,
        key: str,
        trouble: Trouble,
        wanted: Callable[[str], bool],
        also: Iterable[str] = (),
        placeholders: Counter[str] | None = None,
    ) -> None:
        self._path, self._trouble = path, trouble
        self._placeholders = Counter() if placeholders is None else placeholders
        self._names: list[str] = []
        self._rows: dict[str, tuple[int, str]] = {}
        try:
            header = header_of(path)
            self._names = [name for name in header if name and name not in (key, *also)]
            for row, cells in read_table(path, [key, *self._names], trouble):
                if wanted(cells[0]):
                    self._rows[cells[0]] = (row, "\0".join(cells[1:]))
        except DiveError as error:
            if trouble.on_error == "fail":
                raise
            trouble.bad(None, path.name, error)

    def get(self, key: str) -> dict[str, float] | None:
        """The labels of one key, None if it has no row."""
        found = self._rows.pop(key, None)
        if found is None:
            return None
        row, cells = found
        labels: dict[str, float] = {}
        for name, cell in zip(self._names, cells.split("\0"), strict=True):
            if not cell:
                continue
            value = _VALUES.get(cell)
            if value is None and is_absent(cell):
                self._placeholders["label"] += 1
                continue
            if value is None:
                self._trouble.bad(
                    None,
                    f"{row_source(self._path, row)}, column {name!r}",
                    f"is {kind_of(cell)}; wants 1.0, 0.0, -1.0 or nothing",
                )
                continue
            labels[name] = value
        return labels
