"""Comma separated tables, plain or gzipped, whose errors name file, record and column."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import IO, cast

from dive.data.skipping import Skipping
from dive.errors import DiveError
from dive.errors.private import names_of, public_reason
from dive.files.input import NoRegularFile, open_file

# A gzip of a few kilobytes can hold terabytes. The largest table that these datasets come with is
# below one gigabyte, its longest line below a tenth of a megabyte.
MAX_TABLE_BYTES = 8 << 30
MAX_LINE = 1 << 20


def find_table(folders: Sequence[Path], pattern: str) -> Path | None:
    """The table named `pattern` (a glob without suffix) as .csv or .csv.gz, first folder first.

    Where both lie side by side, the plain one: somebody unpacked it.
    """
    for folder in folders:
        for suffix in (".csv", ".csv.gz"):
            found = sorted(folder.glob(pattern + suffix))
            if found:
                return found[-1]
    return None


def record_location(path: Path, number: int) -> str:
    """A record as error messages and studies name it. The header is 1, as in a spreadsheet."""
    return f"{path.name}: row {number}"


def header_of(path: Path) -> list[str]:
    """The column names of a table.

    Raises:
        DiveError: missing, empty, damaged, UTF-16.
    """
    return next(_records(path))[1]


def check_columns(path: Path, wanted: Sequence[str], header: Sequence[str] | None = None) -> None:
    """Raise DiveError unless the table has all the columns `wanted`, each once."""
    header = header_of(path) if header is None else header
    missing = [name for name in wanted if name not in header]
    if missing:
        # of a table without a header the first record is somebody's
        known = len(missing) < len(wanted)
        has = f"the columns are {names_of(header)}" if known else "is the first row its header?"
        raise DiveError(
            f"{record_location(path, 1)}: has no column {', '.join(map(repr, missing))}; {has}"
        )
    twice = [name for name in wanted if header.count(name) > 1]
    if twice:
        raise DiveError(f"{record_location(path, 1)}: has the column {twice[0]!r} twice")


def read_table(
    path: Path, columns: Sequence[str], skipping: Skipping, *, optional: Sequence[str] = ()
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (number, cells of `columns` and then of `optional`) of one record at a time.

    Cells are stripped at both ends. An optional column that is not there gives "". Records that
    are too short, too long or no UTF-8 go to `skipping`. Blank lines are passed over.

    Raises:
        DiveError: names the file and, where it can, record and column: no such file, damaged gzip,
            not a table, missing columns. Such an error is raised whatever `skipping` says: what
            comes behind the damage is unknown, so going on would lose records uncounted.
    """
    records = _records(path)
    _, header = next(records)
    check_columns(path, columns, header)
    check_columns(path, [name for name in optional if name in header], header)
    names = [*columns, *optional]
    # One more cell, always empty, stands for the optional columns that are not there.
    indices = [header.index(name) if name in header else len(header) for name in names]
    pick = itemgetter(*indices) if len(indices) > 1 else lambda cells: (cells[indices[0]],)
    width = len(header)
    for number, cells in records:
        if len(cells) != width:
            if not cells:
                continue
            skipping.skip_or_raise(
                None,
                record_location(path, number),
                f"has {len(cells)} cells, the header has {width} columns",
            )
            continue
        cells.append("")
        picked = tuple(map(str.strip, pick(cells)))
        if not "".join(picked).isascii():  # one test per record
            wrong = next((i for i, cell in enumerate(picked) if not _is_text(cell)), None)
            if wrong is not None:
                column = f"{record_location(path, number)}, column {names[wrong]!r}"
                skipping.skip_or_raise(None, column, "is not UTF-8")
                continue
        yield number, picked


def _is_text(cell: str) -> bool:
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:  # bytes that could not be decoded came in as surrogates
        return False
    return True


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
        with _open(path) as file:
            _refuse_wide(path, file)
            measured = cast(IO[bytes], _Measured(path, file))
            lines = io.TextIOWrapper(
                measured, encoding="utf-8-sig", errors="surrogateescape", newline=""
            )
            for number, cells in enumerate(csv.reader(lines), start=1):
                if number == 1:
                    cells = [cell.strip() for cell in cells]
                yield number, cells
    except FileNotFoundError:
        raise DiveError(f"there is no file {path}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DiveError(
            f"{path.name}: is damaged behind row {number} ({error}); wants the whole file: "
            "download it again and compare its checksum"
        ) from error
    except csv.Error as error:
        raise DiveError(
            f"{record_location(path, number + 1)}: is not a row of a table ({error}); "
            "is a quote left open?"
        ) from error
    except NoRegularFile as error:
        raise DiveError(f"{path.name}: is {error.kind}; wants a table in a regular file") from None
    except OSError as error:
        raise DiveError(f"cannot read {path.name}: {public_reason(error)}") from error
    if number == 0:
        raise DiveError(f"{path.name}: is empty; wants a table with a header")


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], _Unpacked(open_file(path)))
    return cast(IO[bytes], open_file(path))


class _Unpacked(gzip.GzipFile):
    """Closes the file beneath with itself, as `gzip.open` of a path does."""

    def __init__(self, beneath: IO[bytes]) -> None:
        super().__init__(fileobj=beneath, mode="rb")
        self._beneath = beneath

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._beneath.close()


def _refuse_wide(path: Path, file: IO[bytes]) -> None:
    start = file.peek(2)[:2]  # type: ignore[attr-defined]
    if start in (b"\xff\xfe", b"\xfe\xff"):
        raise DiveError(f"{record_location(path, 1)}: is UTF-16; wants UTF-8")


class _Measured(io.BufferedIOBase):
    """The unpacked bytes of `file`, up to the limits of this module."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._total = self._line = 0

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1, /) -> bytes:
        data = self._file.read1(size)  # type: ignore[attr-defined]
        self._total += len(data)
        end = data.rfind(b"\n")
        self._line = self._line + len(data) if end < 0 else len(data) - end - 1
        if self._total > MAX_TABLE_BYTES or self._line > MAX_LINE:
            raise DiveError(
                f"{self._path.name}: holds a line of more than {MAX_LINE:,} bytes, or more than "
                f"{MAX_TABLE_BYTES:,} in all; that is no table of a dataset"
            )
        return data
