"""The notes of an unfinished file of records: how it was made, and a digest of each record.

The notes are in a file next to the records: a first line with the fingerprint of the run, then one
line per record, written before the record. So every record has its note, whenever the process is
killed, and a record that another program added or changed has none.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dive.errors import DiveError

FORMAT = 3  # of the notes; format 1 had the fingerprint alone, format 2 compared paths

# A difference in a field, for messages; other fields are "another NAME".
_WORDS = {
    "backbone_commit": "another commit of the backbone",
    "backbone_weights": "other weights of the backbone",
    "backbone_files": "other files of the backbone",
    "studies": "other studies",
    "demonstrations": "other demonstrations",
    "template": "another chat template",
    "template_date": "another date in the chat template",
    "verify": "another choice of --verify",
    "device": "another kind of device",
    "versions": "other versions",
}
_MOST = 60  # characters of a name, which somebody may have edited


class Unfinished(NamedTuple):
    """The part of an unfinished file that is whole.

    done: id -> what the record was made of, in the records' order. lines: id -> line of its note.
    records_end: bytes of the whole records. notes_end: bytes of the notes up to that of the last
    whole record.
    """

    done: dict[str, Any]
    lines: dict[str, int]
    records_end: int
    notes_end: int


def heading_line(fingerprint: Mapping) -> str:
    """The first line of the notes."""
    heading = {"format": FORMAT, "run": fingerprint}
    return json.dumps(heading, sort_keys=True, ensure_ascii=False, default=str) + "\n"


def note_line(line: bytes, made_of: Any) -> bytes:
    """The note of a record, to be written before its `line`."""
    return (json.dumps([_digest(line), made_of], ensure_ascii=False) + "\n").encode("utf-8")


def read_heading(path: Path) -> tuple[int, dict[str, Any]] | None:
    """The format of the notes and the fingerprint of their run; None without such a heading."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    if isinstance(found.get("format"), int) and isinstance(found.get("run"), dict):
        return found["format"], found["run"]
    return 1, found


def why_another(path: Path, fingerprint: Mapping) -> str | None:
    """Why a run with this fingerprint cannot continue the noted one; None where it can."""
    found = read_heading(path)
    if found is None:
        return "does not say how it was made"
    form, earlier = found
    if form != FORMAT:
        age = "an earlier" if form < FORMAT else "a later"
        return f"was begun by {age} version of dive, whose notes have other fields"
    now = json.loads(heading_line(fingerprint))["run"]
    names = [
        _WORDS.get(name, f"another {name[:_MOST]}") + _inside(earlier.get(name), now.get(name))
        for name in sorted(earlier.keys() | now.keys())
        if earlier.get(name) != now.get(name)
    ]
    return f"was made with {_listed(names)}" if names else None


def _listed(names: list[str]) -> str:
    shown = names[:8] + ([f"{len(names) - 8} more"] if len(names) > 8 else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _inside(one: Any, other: Any) -> str:
    """The differing parts of two fields that have parts: " (model.safetensors)"."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return ""
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    names = [name[:_MOST] for name in names]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" ({', '.join(names[:3])}{more})"


def read_unfinished(partial: Path, notes: Path, known: Collection[str] | None = None) -> Unfinished:
    """The whole records of an unfinished run, without an incomplete last line.

    known: the ids that records of this run can have.

    Raises:
        DiveError: the run did not write one of the lines; the message names it, and the reason.
    """
    data, noted = partial.read_bytes(), notes.read_bytes()
    records_end, notes_end = data.rfind(b"\n") + 1, noted.find(b"\n") + 1
    written = _notes_in(notes, noted)
    done: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for number, raw in enumerate(data[:records_end].split(b"\n")[:-1], start=1):
        try:
            name = _id_of(raw)
            if name in done:
                raise _Odd(f"id {name!r} comes twice")
            if known is not None and name not in known:
                raise _Odd(f"id {name!r} is not among the studies")
            # after a failed write a record is written again, with a second note
            own = _digest(raw + b"\n")
            note = next((one for one in written if one.digest == own), None)
            if note is None:
                raise _Odd("is not as the run wrote it, or not where")
        except _Odd as error:
            raise DiveError(
                f"{partial}:{number}: {error}; only records of the run itself can be "
                "continued: delete this line and those behind it to continue from there, or the "
                "file to start again"
            ) from None
        done[name], lines[name], notes_end = note.made_of, note.line, note.end
    return Unfinished(done, lines, records_end, notes_end)


def bad_note(path: Path, line: int) -> DiveError:
    """The error of a line of the notes that the run did not write."""
    return DiveError(
        f"{path}:{line}: is not a note that the run wrote; delete the unfinished file to start "
        "again"
    )


class _Note(NamedTuple):
    digest: str
    made_of: Any
    line: int
    end: int  # bytes of the notes up to here


class _Odd(Exception):
    """The fault of a line, as text."""


def _id_of(raw: bytes) -> str:
    if not raw.strip():
        raise _Odd("is blank")
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise _Odd("is not a record with an id (not UTF-8)") from None
    except (ValueError, RecursionError):
        raise _Odd("is not a record with an id (not JSON)") from None
    if not isinstance(record, dict) or "id" not in record:
        raise _Odd("is not a record with an id")
    name = record["id"]
    if not isinstance(name, str):
        raise _Odd(f"its id is a {type(name).__name__}, want a string")
    return name


def _notes_in(path: Path, data: bytes) -> Iterator[_Note]:
    end = data.find(b"\n") + 1
    for number, raw in enumerate(data[end:].split(b"\n")[:-1], start=2):
        end += len(raw) + 1
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            found = None
        if not (isinstance(found, list) and len(found) == 2 and isinstance(found[0], str)):
            raise bad_note(path, number)
        yield _Note(found[0], found[1], number, end)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:32]
