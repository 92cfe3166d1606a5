"""JSON lines: atomic files, and an append-only writer that continues after an interruption."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from dive.errors import DiveError, checks
from dive.errors.counting import counted
from dive.errors.renamed import renamed_arguments
from dive.files import notes
from dive.files.atomic import (
    Growing,
    check_file,
    identity,
    remove_leftovers,
    target_of,
    write_bytes,
    write_text,
)
from dive.files.disk import unwritable
from dive.files.lock import Held, hold_file, lock_of


def json_line(record: Mapping) -> str:
    """One record as one line of JSON, readable as written (no escapes for letters beyond ASCII)."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_jsonl(path: str | Path, records: Iterable[Mapping]) -> None:
    """Write records as JSON lines, atomically."""
    write_text(path, "".join(map(json_line, records)))


def fingerprint_before(path: str | Path) -> dict[str, Any]:
    """The fingerprint of the unfinished run that a `JsonlWriter` left at `path`.

    {} where there is no such run, or no fingerprint in its notes.
    """
    partial, noted = _unfinished(Path(os.path.realpath(checks.path("path", path))))
    try:
        if partial.stat().st_size == 0:
            return {}
    except (OSError, ValueError):
        return {}
    heading = notes.read_heading(noted)
    return {} if heading is None else heading[1]


def _unfinished(target: Path) -> tuple[Path, Path]:
    """The paths of the records and of the notes of an unfinished run."""
    return target.with_name(target.name + ".partial"), target.with_name(
        target.name + ".partial.run"
    )


def check_output(path: str | Path) -> Path:
    """The file that a `JsonlWriter` would write, links followed; DiveError where it could not."""
    path = checks.path("path", path)
    if re.search(r"\.partial(\.run)?$", path.name):
        raise DiveError(f"{path}: a file of that name belongs to an unfinished run")
    check_file(path)
    target = target_of(path)
    for one in _unfinished(target):
        target_of(one)
        if one.is_symlink():  # a renamed link would still be a link
            raise DiveError(f"{one} is a link, want the unfinished file itself, or none")
    return target


class JsonlWriter:
    """Appends records to `<path>.partial` as they come, and renames it to `path` at the end.

    An interrupted run is continued by opening the same path again: an incomplete last line is
    dropped, and `done` has the ids that need not be repeated, in their order. The `fingerprint`
    has everything that must be equal to continue a run (backbone, adapter, prompt, ...); it is kept
    next to the records, and records of different runs are never mixed.

        with JsonlWriter("reports.jsonl", fingerprint={...}) as writer:
            for report in iter_reports(..., [s for s in studies if s.id not in writer.done]):
                writer.append({"id": report.id, ...})
            writer.finish()

    Without `finish`, after an error or a kill, the records stay in `<path>.partial`. For a link
    all these files are next to its target. One writer at a time: see `dive.files.lock`.

    Args:
        fingerprint: JSON values that are compared when the run is continued.
        order: the ids that records may have, in the order of the finished file. A record that an
            earlier run left out may be appended late.
        made_of: called with each id that is written; `done` has its result, JSON values, when the
            run is continued.
        overwrite: a file that appeared at `path` during the run may be replaced; without it only
            the one that was there before.
        lock: `hold_file(path)` of a caller that holds it already and releases it.

    Raises:
        DiveError: another process, or another writer in this one, writes the file; it is no
            regular file; the unfinished file belongs to another run or has other lines than its
            records; an id is appended twice, or is no string; a record cannot be written (the
            whole ones stay).
    """

    @renamed_arguments(run="fingerprint")
    def __init__(
        self,
        path: str | Path,
        *,
        fingerprint: Mapping | None = None,
        order: Iterable[str] | None = None,
        made_of: Callable[[str], Any] | None = None,
        overwrite: bool = False,
        lock: Held | None = None,
    ) -> None:
        self.path = checks.path("path", path)
        self._target = check_output(self.path)
        self.partial, self._notes_path = _unfinished(self._target)
        self.done: dict[str, Any] = {}
        self._noted_in: dict[str, int] = {}  # id -> line in the notes
        self._records: Growing | None = None
        self._notes: Growing | None = None
        self._closed = False
        self._order = None if order is None else {name: at for at, name in enumerate(order)}
        self._made_of = made_of
        self._heading = notes.heading_line(fingerprint or {})
        if lock is not None and lock.path != lock_of(self.path):
            raise DiveError(f"{self.path}: the lock is that of {lock.output}")
        self._lock = hold_file(self.path) if lock is None else None
        try:
            remove_leftovers(self._target, ".partial.run")
            self._before = None if overwrite else identity(self._target)
            self._overwrite = overwrite
            # a run that ended before its first record leaves nothing to continue or to mix
            if self.partial.exists() and self.partial.stat().st_size > 0:
                reason = notes.why_another(self._notes_path, fingerprint or {})
                if reason is not None:
                    raise self.another(reason)
                self._recover()
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> tuple[Growing, Growing]:
        """The files of the records and of the notes, created with the first record."""
        if self._closed:
            raise DiveError(f"{self.path}: its writer is closed")
        if self._records is None or self._notes is None:
            if not self.done:
                write_text(self._notes_path, self._heading)
            try:
                self._notes = Growing(self._notes_path, self._target)
                self._records = Growing(self.partial, self._target)
            except OSError as error:
                raise unwritable(self.path, error) from error
        return self._records, self._notes

    def another(self, reason: str) -> DiveError:
        """The error of an unfinished run that cannot be continued by this one, for a `reason`."""
        return DiveError(
            f"{self.partial} is an unfinished run that {reason}: it cannot be continued; repeat "
            "that command to finish it, delete the file to start again, or write somewhere else"
        )

    def bad_note(self, name: str) -> DiveError:
        """The error of a note on the record `name` that the run did not write."""
        return notes.bad_note(self._notes_path, self._noted_in[name])

    def _recover(self) -> None:
        try:
            found = notes.read_unfinished(self.partial, self._notes_path, self._order)
            # the record that was being written when the run ended; its study is repeated
            os.truncate(self.partial, found.records_end)
            os.truncate(self._notes_path, found.notes_end)
        except OSError as error:
            raise DiveError(f"cannot continue {self.partial}: {error.strerror}") from error
        self.done, self._noted_in = found.done, found.lines

    def append(self, record: Mapping) -> None:
        """Write one record and hand it to the operating system, so that a killed process keeps it.

        A record that cannot be written whole is removed, so that the file ends with a whole line.
        """
        name = record["id"]
        if not isinstance(name, str):
            raise DiveError(f"{self.path}: an id is {name!r}, want a string")
        if name in self.done:
            raise DiveError(f"{self.path}: id {name!r} comes twice")
        if self._order is not None and name not in self._order:
            raise DiveError(f"{self.path}: id {name!r} is not among the expected ones")
        records, noted = self._open()
        line = json_line(record).encode("utf-8")
        made_of = None if self._made_of is None else self._made_of(name)
        try:
            self._check_alone(records)
            self._check_alone(noted)
            # the note first, so that every record has its note, whenever the process is killed
            noted.append(notes.note_line(line, made_of))
            records.append(line)
        except OSError as error:
            if records.closed or noted.closed:
                self.close()
            raise self._kept(unwritable(self.path, error, len(line))) from error
        self.done[name] = made_of

    def finish(self) -> None:
        """Give the file its final name; all records must have been appended."""
        records, _ = self._open()
        try:
            self._check_alone(records)
            records.sync()
            if target_of(self.path) != self._target:
                raise self._kept(DiveError(f"{self.path} leads elsewhere than when the run began"))
            if not self._overwrite and identity(self._target) != self._before:
                raise self._kept(
                    DiveError(f"{self.path}: another process has written it since this run began")
                )
            if self._in_order():
                os.replace(self.partial, self._target)
            else:
                write_bytes(self._target, self._ordered())
                self.partial.unlink()
            with contextlib.suppress(OSError):
                self._notes_path.unlink()
        except OSError as error:
            raise self._kept(unwritable(self.path, error)) from error
        finally:
            self.close()

    def _check_alone(self, file: Growing) -> None:
        """Raise DiveError where another process changed an unfinished file."""
        if not file.is_ours():
            raise DiveError(
                f"{file.path}: another process has changed it or taken it away while it was "
                "being written; the run cannot continue"
            )

    def _kept(self, error: DiveError) -> DiveError:
        finished = counted(len(self.done), "record")
        return DiveError(f"{error}; what was finished ({finished}) stays in {self.partial}")

    def _in_order(self) -> bool:
        indices = [] if self._order is None else [self._order[name] for name in self.done]
        return indices == sorted(indices)

    def _ordered(self) -> bytes:
        assert self._order is not None
        order = self._order
        lines = self.partial.read_bytes().split(b"\n")[:-1]
        ordered = sorted(zip(self.done, lines, strict=True), key=lambda one: order[one[0]])
        return b"".join(line + b"\n" for _, line in ordered)

    def close(self) -> None:
        """Close the files; appended records stay."""
        self._closed = True
        for file in (self._records, self._notes):
            if file is not None:
                file.close()
        self._records = self._notes = None
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
