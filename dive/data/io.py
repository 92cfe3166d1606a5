"""JSON lines that survive an interruption: atomic files, and an append-only writer that resumes."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from dive import checks
from dive.data import notes
from dive.errors import DiveError


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 so that `path` holds the old content or the new one, never a part."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` so that `path` holds the old content or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic within one file system only.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner may read; give this one the usual mode.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def check_folder(path: str | Path) -> None:
    """DiveError unless files could be written into this folder, which need not be there yet."""
    path = Path(path)
    try:
        place = path
        while not _stat(place):
            place = place.parent
        found = None if place.is_dir() else _kind(place)
        if found is None:
            # a file without a name: permissions, full and read-only file systems show for root, too
            with tempfile.TemporaryFile(dir=place):
                pass
    except (OSError, ValueError) as error:
        raise DiveError(f"cannot write into {path}: {_reason(error)}") from error
    if found is not None:
        if place == path:
            raise DiveError(f"{path} is {found}; wants a folder")
        raise DiveError(f"cannot write into {path}: {place} is {found}")


def check_file(path: str | Path) -> None:
    """DiveError unless a file of this name could be written; it need not be there yet.

    What is there and no regular file (a device, a pipe, a link that leads nowhere) is refused.
    """
    path = Path(path)
    try:
        if _stat(path) and path.is_dir():
            raise DiveError(f"{path} is a folder; wants the name of a file to write")
        if _stat(path) and not path.is_file():
            raise DiveError(f"{path} is no regular file; wants the name of a file to write")
    except (OSError, ValueError) as error:
        raise DiveError(f"cannot write {path}: {_reason(error)}") from error
    try:
        check_folder(path.parent)
    except DiveError as error:
        raise DiveError(f"cannot write {path}: {error}") from error


def _kind(path: Path) -> str:
    """What is there, and no folder."""
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there"
    return "a file" if path.is_file() else "no folder"


def _stat(path: Path) -> bool:
    """Whether there is anything of this name; OSError for what can never be one."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path.is_symlink()  # one that leads nowhere is in the way, too
    return True


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def json_line(row: Mapping) -> str:
    """One row as one line of JSON, readable as written (no escapes for letters beyond ASCII)."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_jsonl(path: str | Path, rows: Iterable[Mapping]) -> None:
    """Write rows as JSON lines, atomically."""
    write_text(path, "".join(map(json_line, rows)))


def run_before(path: str | Path) -> dict[str, Any]:
    """How the unfinished run that a `JsonlWriter` left at `path` was made; {} where there is none
    (or where it does not say)."""
    path = checks.place("path", path)
    try:
        if path.with_name(path.name + ".partial").stat().st_size == 0:
            return {}
    except (OSError, ValueError):
        return {}
    found = notes.described(path.with_name(path.name + ".partial.run"))
    return {} if found is None else found[1]


class JsonlWriter:
    """Appends rows to `<path>.partial` as they come, and renames it to `path` at the end.

    A run that was interrupted is continued by opening the same path again: a last line that was
    torn is dropped, and `done` holds the ids that need not be repeated, in their order, with what
    their rows were made of. `run` describes what must be equal for two runs to be one (backbone,
    adapter, prompt, ...); it is kept beside the rows with a digest of each (`dive.data.notes`), and
    rows of another run, or of another hand, are never mixed in.

        with JsonlWriter("reports.jsonl", run={...}, order=ids) as writer:
            for report in iter_reports(..., [s for s in studies if s.id not in writer.done]):
                writer.append({"id": report.id, ...})
            writer.finish()

    Left without `finish`, by an error or a kill, the rows stay in `<path>.partial`.

    order: the ids that rows may have, in the order that they have in the finished file: one that an
        earlier run had to leave out may come later than its turn.
    made_of: asked for each id that is written; `done` has the answer, JSON values, when the run is
        continued.

    Raises:
        DiveError: the unfinished file belongs to another run or holds something else than its rows;
            an id is appended twice, or is no text.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        run: Mapping | None = None,
        order: Iterable[str] | None = None,
        made_of: Callable[[str], Any] | None = None,
    ) -> None:
        self.path = checks.place("path", path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._run_path = self.path.with_name(self.path.name + ".partial.run")
        check_file(self.path)
        self.done: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        self._notes: BinaryIO | None = None
        self._order = None if order is None else {name: at for at, name in enumerate(order)}
        self._made_of = made_of
        self._heading = notes.heading(run or {})
        # a run that ended before its first row leaves nothing to go on from, and nothing to mix
        if self.partial.exists() and self.partial.stat().st_size > 0:
            self._check_run(run or {})
            self._recover()
            self._open()

    def _open(self) -> BinaryIO:
        """The file of the rows, made for the first one: a run that never came to it leaves none."""
        if self._file is None:
            try:
                if not self.done:
                    write_text(self._run_path, self._heading)
                self._notes = open(self._run_path, "ab")  # noqa: SIM115 (closed by close)
                self._file = open(self.partial, "ab")  # noqa: SIM115
            except OSError as error:
                raise DiveError(f"cannot write {self.path}: {error.strerror}") from error
        return self._file

    def _check_run(self, run: Mapping) -> None:
        reason = notes.why_another(self._run_path, run)
        if reason is not None:
            raise self.another(reason)

    def another(self, reason: str) -> DiveError:
        """The error of an unfinished run that this one may not join, for a `reason`."""
        return DiveError(
            f"{self.partial} is an unfinished run that {reason}: it cannot be continued; repeat "
            "that command to finish it, delete the file to start again, or write somewhere else"
        )

    def _recover(self) -> None:
        try:
            found = notes.kept(self.partial, self._run_path, self._order)
            # what was being written when the run ended; its study is done again
            os.truncate(self.partial, found.rows_end)
            os.truncate(self._run_path, found.notes_end)
        except OSError as error:
            raise DiveError(f"cannot go on with {self.partial}: {error.strerror}") from error
        self.done = found.done

    def append(self, row: Mapping) -> None:
        """Write one row and hand it to the operating system, so that a killed process keeps it."""
        name = row["id"]
        if not isinstance(name, str):
            raise DiveError(f"{self.path}: an id is {name!r}; wants a text")
        if name in self.done:
            raise DiveError(f"{self.path}: id {name!r} comes twice")
        if self._order is not None and name not in self._order:
            raise DiveError(f"{self.path}: id {name!r} is none of those that were to come")
        file, line = self._open(), json_line(row).encode("utf-8")
        made_of = None if self._made_of is None else self._made_of(name)
        assert self._notes is not None
        self._notes.write(notes.note_of(line, made_of))
        self._notes.flush()
        file.write(line)
        file.flush()
        self.done[name] = made_of

    def finish(self) -> None:
        """All rows are there: give the file its final name."""
        file = self._open()
        file.flush()
        os.fsync(file.fileno())
        self.close()
        if self._in_order():
            os.replace(self.partial, self.path)
        else:
            write_bytes(self.path, self._ordered())
            self.partial.unlink()
        self._run_path.unlink(missing_ok=True)

    def _in_order(self) -> bool:
        places = [] if self._order is None else [self._order[name] for name in self.done]
        return places == sorted(places)

    def _ordered(self) -> bytes:
        assert self._order is not None
        order = self._order
        lines = self.partial.read_bytes().split(b"\n")[:-1]
        rows = sorted(zip(self.done, lines, strict=True), key=lambda one: order[one[0]])
        return b"".join(line + b"\n" for _, line in rows)

    def close(self) -> None:
        for file in (self._file, self._notes):
            if file is not None:
                file.close()

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
