"""What to do with bad input: fail at the first piece, or skip it and keep an entry."""

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
    """What `on_error="skip"` left out, and why; nothing is dropped without an entry here."""

    entries: list[dict[str, str | None]] = field(default_factory=list)

    def add(self, id: str | None, source: str, reason: object) -> None:
        self.entries.append({"id": id, "source": source, "reason": str(reason)})

    def write(self, path: str | PathLike[str]) -> None:
        """Write one JSON line an entry, atomically."""
        write_jsonl(checks.path("path", path), self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self):
        return iter(self.entries)


def check_skipped(path: Path) -> None:
    """DiveError unless `Skipped.write` may write there, or remove what an earlier run wrote there:
    what is none of its lists is not touched."""
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
            f"{path}: what is skipped would be listed there, and it holds something else; rename "
            "it, or write somewhere else"
        )


def check_on_error(on_error: str, skipped: Skipped | None) -> Skipped:
    """Validate the pair of options that every reader and writer of studies takes."""
    if on_error not in ("fail", "skip"):
        raise DiveError(f"on_error is {on_error!r}; wants 'fail' or 'skip'")
    if skipped is not None and not isinstance(skipped, Skipped):
        raise DiveError(f"skipped is {skipped!r}; wants a dive.data.Skipped(), or None")
    return Skipped() if skipped is None else skipped


class Skipping:
    """What happens to bad input: the pair (on_error, skipped) as one object that readers use."""

    def __init__(self, on_error: str = "fail", skipped: Skipped | None = None) -> None:
        self.skipped = check_on_error(on_error, skipped)
        self.on_error = on_error

    def skip_or_raise(self, id: str | None, source: str, reason: object) -> None:
        """Raise DiveError "source: reason", or record it and return."""
        text = str(reason)
        message = text if not source or text.startswith(source) else f"{source}: {text}"
        if self.on_error == "fail":
            raise reason if isinstance(reason, DiveError) else DiveError(message)
        self.skipped.add(id, source, message)
