"""JSON lines that survive an interruption: atomic files, and an append-only writer that resumes."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from dive import checks
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
        found = json.loads(path.with_name(path.name + ".partial.run").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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

    Left without `finish`, by an error or a kill, the rows stay in `<path>.partial`.

    Raises:
        DiveError: the unfinished file belongs to another run or holds something else than rows; an
            id is appended twice.
    """

    def __init__(self, path: str | Path, *, run: Mapping | None = None) -> None:
        self.path = checks.place("path", path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._run_path = self.path.with_name(self.path.name + ".partial.run")
        check_file(self.path)
        self.done: dict[str, None] = {}
        self._file: BinaryIO | None = None
        self._description = description = json.dumps(
            run or {}, sort_keys=True, ensure_ascii=False, default=str
        )
        # a run that ended before its first row leaves nothing to go on from, and nothing to mix
        if self.partial.exists() and self.partial.stat().st_size > 0:
            self._check_run(description)
            self._recover()
            self._open()

    def _open(self) -> BinaryIO:
        """The file of the rows, made for the first one: a run that never came to it leaves none."""
        if self._file is None:
            try:
                write_text(self._run_path, self._description + "\n")
                self._file = open(self.partial, "ab")  # noqa: SIM115 (closed by close)
            except OSError as error:
                raise DiveError(f"cannot write {self.path}: {error.strerror}") from error
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
        """Write one row and hand it to the operating system, so that a killed process keeps it."""
        name = row["id"]
        if name in self.done:
            raise DiveError(f"{self.path}: id {name!r} comes twice")
        file = self._open()
        file.write(json_line(row).encode("utf-8"))
        file.flush()
        self.done[name] = None

    def finish(self) -> None:
        """All rows are there: rename the file to its final name."""
        file = self._open()
        file.flush()
        os.fsync(file.fileno())
        self.close()
        os.replace(self.partial, self.path)
        self._run_path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
