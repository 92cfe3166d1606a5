"""The treatment of bad input: fail at the first piece, or skip it and record an entry."""

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from dive.errors import DiveError, checks
from dive.files.atomic import check_file
from dive.files.input import lines_of
from dive.files.json_lines import write_jsonl


@dataclass
class Skipped:
    """What `on_error="skip"` left out, and why: an entry for everything that is dropped."""

    entries: list[dict[str, str | None]] = field(default_factory=list)

    def add(self, id: str | None, source: str, reason: object) -> None:
        self.entries.append({"id": id, "source": source, "reason": str(reason)})

    def write(self, path: str | PathLike[str]) -> None:
        """Write one JSON line per entry, atomically."""
        write_jsonl(checks.path("path", path), self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self):
        return iter(self.entries)


def check_skipped(path: Path) -> None:
    """Raise DiveError unless `Skipped.write` may write or replace this file.

    An existing file must be such a list of an earlier run.
    """
    check_file(path)
    try:
        first = next((line for _, line in lines_of(path)), None)
        entry = {} if first is None else json.loads(first)
        keys = {"id", "source", "reason"}
        own = first is None or (isinstance(entry, dict) and keys <= entry.keys())
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError, DiveError):
        own = False
    if not own:
        raise DiveError(
            f"{path}: exists and is no list of skipped studies, which would be written there; "
            "rename it, or write somewhere else"
        )


def check_on_error(on_error: str, skipped: Skipped | None) -> Skipped:
    """Check the pair of options that every reader and writer of studies has."""
    if on_error not in ("fail", "skip"):
        raise DiveError(f"on_error is {on_error!r}, want 'fail' or 'skip'")
    if skipped is not None and not isinstance(skipped, Skipped):
        raise DiveError(f"skipped is {skipped!r}, want a dive.data.Skipped(), or None")
    return Skipped() if skipped is None else skipped


class Skipping:
    """The pair (on_error, skipped) as an object, which readers pass bad input to."""

    def __init__(self, on_error: str = "fail", skipped: Skipped | None = None) -> None:
        self.skipped = check_on_error(on_error, skipped)
        self.on_error = on_error

    def skip_or_raise(self, id: str | None, source: str, reason: object) -> None:
        """Raise DiveError "source: reason", or add it to `skipped` and return."""
        text = str(reason)
        message = text if not source or text.startswith(source) else f"{source}: {text}"
        if self.on_error == "fail":
            raise reason if isinstance(reason, DiveError) else DiveError(message)
        self.skipped.add(id, source, message)
