"""Tables of labels: 1 positive, 0 negative, -1 uncertain, blank not mentioned."""

from collections.abc import Callable, Iterable
from pathlib import Path

from dive.data.tables import header_of, read_table, row_source
from dive.data.trouble import Trouble
from dive.errors import DiveError

_VALUES = {
    "1.0": 1.0,
    "1": 1.0,
    "0.0": 0.0,
    "0": 0.0,
    "-1.0": -1.0,
    "-1": -1.0,
}


def read_labels(
    path: Path, key: str, trouble: Trouble, wanted: Callable[[str], bool], also: Iterable[str] = ()
) -> dict[str, dict[str, float]]:
    """Labels by the column `key`, for the keys that are `wanted`; blank ones are left out.

    Every column but `key` and those of `also` is a label. A damaged file is bad input like any
    other: with `on_error="skip"` it leaves one entry, and the labels read before the damage.
    """
    found: dict[str, dict[str, float]] = {}
    try:
        header = header_of(path)
        names = [name for name in header if name and name != key and name not in tuple(also)]
        for row, cells in read_table(path, [key, *names], trouble):
            if not wanted(cells[0]):
                continue
            labels: dict[str, float] = {}
            for name, cell in zip(names, cells[1:], strict=True):
                if not cell:
                    continue
                value = _VALUES.get(cell)
                if value is None:
                    trouble.bad(
                        None,
                        f"{row_source(path, row)}, column {name!r}",
                        f"is {cell!r}; wants 1.0, 0.0, -1.0 or nothing",
                    )
                    continue
                labels[name] = value
            found[cells[0]] = labels
    except DiveError as error:
        if trouble.on_error == "fail":
            raise
        trouble.bad(None, str(path), error)
    return found
