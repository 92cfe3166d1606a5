"""The records of an experiment: a file of JSON lines, one per run, checked as it is read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dive.errors import DiveError

Record = dict[str, Any]


def read(path: Path) -> list[tuple[str, Record]]:
    """Returns each record of a file with its location, "name.jsonl:12"; no file: no records.

    Raises DiveError for a line that is no JSON object, and for a last line without its end: it is
    what a killed run leaves, and the next record would be appended to it.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        location = f"{path.name}:{number}"
        if not line.endswith(b"\n"):
            raise DiveError(
                f"{location}: the last line is torn, want a whole record and its \\n; without it, "
                "its run is done again"
            )
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DiveError(f"{location}: the line is no JSON ({error})") from error
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise DiveError(f"{location}: the record is a {kind}, want an object")
        found.append((location, record))
    return found


def check_names(location: str, record: Record, known: Mapping[str, Sequence[Any]]) -> None:
    """Raises DiveError where a field is absent, or its value is none of the known ones."""
    for name, values in known.items():
        if name not in record:
            raise DiveError(f"{location}: the record has no {name!r}")
        value = record[name]
        if value not in values or isinstance(value, bool):
            wanted = ", ".join(map(str, values))
            raise DiveError(f"{location}: {name} is {value!r}, want one of {wanted}")


def check_unique(records: Sequence[tuple[str, Record]], key: Sequence[str]) -> None:
    """Raises DiveError where two records have the same key."""
    first: dict[tuple[Any, ...], str] = {}
    for location, record in records:
        own = tuple(record.get(name) for name in key)
        if own in first:
            shown = ", ".join(f"{name} {value}" for name, value in zip(key, own, strict=True))
            raise DiveError(f"{location}: {shown} is a second record of {first[own]}, want one")
        first[own] = location
