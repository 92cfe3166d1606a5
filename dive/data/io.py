"""JSON lines that survive an interruption: atomic files, and an append-only writer that resumes."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from dive import checks
from dive.counting import counted
from dive.data.disk import unwritable
from dive.data.files import (
    append_line,
    check_file,
    check_folder,
    identity,
    is_file_of,
    keep_mode,
    sweep,
    target_of,
    write_all,
    write_bytes,
    write_text,
)
from dive.data.lock import Held, hold_file, lock_of
from dive.errors import DiveError

__all__ = [
    "JsonlWriter",
    "append_line",
    "check_file",
    "check_folder",
    "check_rows",
    "json_line",
    "run_before",
    "write_bytes",
    "write_jsonl",
    "write_text",
]


def json_line(row: Mapping) -> str:
    """One row as one line of JSON, readable as written (no escapes for letters beyond ASCII)."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_jsonl(path: str | Path, rows: Iterable[Mapping]) -> None:
    """Write rows as JSON lines, atomically."""
    write_text(path, "".join(map(json_line, rows)))


def run_before(path: str | Path) -> dict[str, Any]:
    """How the unfinished run that a `JsonlWriter` left at `path` was made; {} where there is none
    (or where it does not say)."""
    partial, described = _unfinished(Path(os.path.realpath(checks.place("path", path))))
    try:
        if partial.stat().st_size == 0:
            return {}
        found = json.loads(described.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _unfinished(target: Path) -> tuple[Path, Path]:
    """Where the rows of an unfinished run are, and how it was made."""
    return target.with_name(target.name + ".partial"), target.with_name(
        target.name + ".partial.run"
    )


def check_rows(path: str | Path) -> Path:
    """DiveError unless a `JsonlWriter` could write there; the file itself, links followed."""
    path = checks.place("path", path)
    if re.search(r"\.partial(\.run)?$", path.name):
        raise DiveError(f"{path}: a file of that name belongs to an unfinished run")
    check_file(path)
    target = target_of(path)
    for one in _unfinished(target):
        target_of(one)
        if one.is_symlink():  # renamed, it would be a link still
            raise DiveError(f"{one} is a link; wants the unfinished file itself, or none")
    return target


class JsonlWriter:
    """Appends rows to `<path>.partial` as they come, and renames it to `path` at the end.

    A run that was interrupted is continued by opening the same path again: a last line that was
    torn is dropped, and `done` holds the ids that need not be repeated, in their order. `run`
    describes what must be equal for two runs to be one (backbone, adapter, prompt, ...); it is kept
    beside the rows, and rows of another run are never mixed in.

        with JsonlWriter("reports.jsonl", run={...}) as writer:
            for report in iter_reports(..., [s for s in studies if s.id not in writer.done]):
                writer.append({"id": report.id, ...})
            writer.finish()

    Left without `finish`, by an error or a kill, the rows stay in `<path>.partial`. Of a link, all
    this is beside what it leads to. One writer at a time: see `dive.data.lock`.

    Args:
        overwrite: what came to `path` meanwhile may be replaced; without it, only what was there
            before.
        lock: `hold_file(path)` of a caller that holds it already, and lets it go.

    Raises:
        DiveError: another process writes it, or another writer of this one; it is no regular file;
            the unfinished file belongs to another run or holds something else than rows; an id is
            appended twice; a row cannot be written, where the whole ones stay.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        run: Mapping | None = None,
        overwrite: bool = False,
        lock: Held | None = None,
    ) -> None:
        self.path = checks.place("path", path)
        self._target = check_rows(self.path)
        self.partial, self._run_path = _unfinished(self._target)
        self.done: dict[str, None] = {}
        self._file: int | None = None
        self._size = 0
        self._closed = False
        self._description = description = json.dumps(
            run or {}, sort_keys=True, ensure_ascii=False, default=str
        )
        if lock is not None and lock.path != lock_of(self.path):
            raise DiveError(f"{self.path}: the lock is that of {lock.output}")
        self._lock = hold_file(self.path) if lock is None else None
        try:
            sweep(self._target, ".partial.run")
            self._before = None if overwrite else identity(self._target)
            self._overwrite = overwrite
            # a run that ended before its first row leaves nothing to go on from, nor to mix
            if self.partial.exists() and self.partial.stat().st_size > 0:
                self._check_run(description)
                self._recover()
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        """The file of the rows, made for the first one: a run that never came to it leaves none."""
        if self._closed:
            raise DiveError(f"{self.path}: its writer is closed")
        if self._file is None:
            write_text(self._run_path, self._description + "\n")
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                self._file = os.open(self.partial, flags, 0o666)
                keep_mode(self._file, self._target)
                self._size = os.fstat(self._file).st_size
            except OSError as error:
                raise unwritable(self.path, error) from error
        return self._file

    def _check_run(self, description: str) -> None:
        try:
            earlier = json.loads(self._run_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            earlier = None
        now = json.loads(description)
        if earlier == now:
            return
        if isinstance(earlier, dict):
            names = sorted(
                name for name in earlier.keys() | now.keys() if earlier.get(name) != now.get(name)
            )
            reason = f"was made with another {', '.join(names)}"
        else:
            reason = "does not say how it was made"
        raise DiveError(
            f"{self.partial} is an unfinished run that {reason}: it cannot be continued; repeat "
            "that command to finish it, delete the file to start again, or write somewhere else"
        )

    def _recover(self) -> None:
        data = self.partial.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, raw in enumerate(data[:whole].split(b"\n")[:-1], start=1):
            try:
                row = json.loads(raw)
                name = row["id"]
            except (ValueError, TypeError, KeyError):
                raise DiveError(
                    f"{self.partial}:{number}: is not a row with an id; "
                    "delete the file to start again"
                ) from None
            self.done[name] = None
        if whole < len(data):
            # The line being written when the run ended; its study is done again.
            os.truncate(self.partial, whole)

    def append(self, row: Mapping) -> None:
        """Write one row and hand it to the operating system, so that a killed process keeps it.

        A row that finds no room is taken back, so that the file ends with a whole line.
        """
        name = row["id"]
        if name in self.done:
            raise DiveError(f"{self.path}: id {name!r} comes twice")
        line = json_line(row).encode("utf-8")
        handle = self._open()
        self._check_alone(handle)
        try:
            write_all(handle, line)
        except BaseException as error:
            try:
                os.ftruncate(handle, self._size)
            except OSError:
                self.close()  # nothing may follow a torn line; the next run drops it
            if isinstance(error, OSError):
                raise self._kept(unwritable(self.path, error, len(line))) from error
            raise
        self._size += len(line)
        self.done[name] = None

    def finish(self) -> None:
        """All rows are there: rename the file to its final name."""
        handle = self._open()
        try:
            self._check_alone(handle)
            os.fsync(handle)
            if target_of(self.path) != self._target:
                raise self._kept(DiveError(f"{self.path} leads elsewhere than when the run began"))
            if not self._overwrite and identity(self._target) != self._before:
                raise self._kept(
                    DiveError(f"{self.path}: another process has written it since this run began")
                )
            os.replace(self.partial, self._target)
            with contextlib.suppress(OSError):
                self._run_path.unlink()
        except OSError as error:
            raise self._kept(unwritable(self.path, error)) from error
        finally:
            self.close()

    def _check_alone(self, handle: int) -> None:
        """DiveError where the unfinished file is no longer what was written."""
        if not is_file_of(handle, self.partial) or os.fstat(handle).st_size != self._size:
            raise DiveError(
                f"{self.partial}: another process has changed it or taken it away while it was "
                "being written; the run cannot go on"
            )

    def _kept(self, error: DiveError) -> DiveError:
        rows = counted(len(self.done), "row")
        return DiveError(f"{error}; what was finished ({rows}) stays in {self.partial}")

    def close(self) -> None:
        """Rows that were appended stay; no more can be."""
        self._closed = True
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a full disk on a network, said before
                os.close(self._file)
            self._file = None
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
