"""JSON lines that somebody wrote, as numbered objects."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dive.errors import DiveError
from dive.errors.private import line_location


def json_objects(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(number, object) of every line that is not blank; DiveError where there is none."""
    from dive.files.input import lines_of

    found = []
    for number, line in _reported(path, lines_of(path)):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DiveError(f"cannot read {path}: line {number}: {error}") from error
        except RecursionError:
            raise DiveError(f"{path}:{number}: is nested too deeply") from None
        except ValueError as error:
            raise DiveError(f"{line_location(path, number)}: is not JSON ({error})") from None
        if not isinstance(record, dict):
            raise DiveError(f"{line_location(path, number)}: is no JSON object, want one per line")
        found.append((number, record))
    if not found:
        raise DiveError(f"{path}: has no lines")
    return found


def _reported(path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    try:
        yield from lines
    except OSError as error:
        raise DiveError(f"cannot read {path}: {error}") from error
