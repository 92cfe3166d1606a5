"""Comma-separated tables, plain or gzipped, with errors that name file, record and column."""

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

# A gzip file of a few kilobytes can unpack to terabytes. The largest table of these datasets is
# below one gigabyte, its longest line below a tenth of a megabyte.
MAX_TABLE_BYTES = 8 << 30
MAX_LINE = 1 << 20


def find_table(folders: Sequence[Path], pattern: str) -> Path | None:
    """The table named `pattern` (a glob without suffix) as .csv or .csv.gz, first folder first.

    If both are there, the plain one is used, because it was unpacked on purpose.
    """
    for folder in folders:
        for suffix in (".csv", ".csv.gz"):
            found = sorted(folder.glob(pattern + suffix))
            if found:
                return found[-1]
    return None


def record_location(path: Path, number: int) -> str:
    """The location of a record in messages and in `Study.source`; the header is row 1.

    It says "row", as a spreadsheet does.
    """
    return f"{path.name}: row {number}"


def header_of(path: Path) -> list[str]:
    """The column names of a table.

    Raises:
        DiveError: the table is missing, empty, damaged, or UTF-16.
    """
    return next(_records(path))[1]


def check_columns(path: Path, wanted: Sequence[str], header: Sequence[str] | None = None) -> None:
    """Raise DiveError unless the table has all the columns `wanted`, each once."""
    header = header_of(path) if header is None else header
    missing = [name for name in wanted if name not in header]
    if missing:
        # without a header the first record has the data of a patient
        known = len(missing) < len(wanted)
        has = f"the columns are {names_of(header)}" if known else "is the first line its header?"
        raise DiveError(
            f"{record_location(path, 1)}: has no column {', '.join(map(repr, missing))}; {has}"
        )
    twice = [name for name in wanted if header.count(name) > 1]
    if twice:
        raise DiveError(f"{record_location(path, 1)}: has the column {twice[0]!r} twice")


def read_table(
    path: Path, columns: Sequence[str], skipping: Skipping, *, optional: Sequence[str] = ()
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields (number, cells of `columns` and then of `optional`) of each record.

    Cells are stripped. The cells of a missing optional column are "". Records that are too short,
    too long or no UTF-8 are passed to `skipping`; blank lines are ignored.

    Raises:
        DiveError: the file does not exist, is a damaged gzip file or no table, or lacks columns.
            `skipping` does not apply, because the records behind the damage would be lost
            uncounted.
    """
    records = _records(path)
    _, header = next(records)
    check_columns(path, columns, header)
    check_columns(path, [name for name in optional if name in header], header)
    names = [*columns, *optional]
    # An additional empty cell represents the missing optional columns.
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
        if not "".join(picked).isascii():  # one test per record, for speed
            wrong = next((i for i, cell in enumerate(picked) if not _is_text(cell)), None)
            if wrong is not None:
                column = f"{record_location(path, number)}, column {names[wrong]!r}"
                skipping.skip_or_raise(None, column, "is not UTF-8")
                continue
        yield number, picked


def _is_text(cell: str) -> bool:
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:  # bytes that could not be decoded are surrogates
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
            f"{path.name}: is damaged behind row {number} ({error}), want the whole file: "
            "download it again and compare its checksum"
        ) from error
    except csv.Error as error:
        raise DiveError(
            f"{record_location(path, number + 1)}: is not a record of a table ({error}); "
            "is a quote left open?"
        ) from error
    except NoRegularFile as error:
        raise DiveError(f"{path.name}: is {error.kind}, want a table in a regular file") from None
    except OSError as error:
        raise DiveError(f"cannot read {path.name}: {public_reason(error)}") from error
    if number == 0:
        raise DiveError(f"{path.name}: is empty, want a table with a header")


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], _Unpacked(open_file(path)))
    return cast(IO[bytes], open_file(path))


class _Unpacked(gzip.GzipFile):
    """A gzip file that closes the underlying file with itself, as `gzip.open` of a path does."""

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
        raise DiveError(f"{record_location(path, 1)}: is UTF-16, want UTF-8")


class _Measured(io.BufferedIOBase):
    """A stream of the unpacked bytes of `file`, with the limits of this module."""

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
                f"{self._path.name}: has a line of more than {MAX_LINE:,} bytes, or more than "
                f"{MAX_TABLE_BYTES:,} in all; no table of a dataset has that"
            )
        return data
