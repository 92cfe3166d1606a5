"""Predictions as `dive evaluate` and `dive report` read them, joined with references by id."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dive.cli.json_records import json_objects
from dive.cli.references import Reference
from dive.errors import DiveError
from dive.errors.counting import counted, listed
from dive.errors.private import line_location, names_of


def predictions_of(path: Path) -> dict[str, dict[str, Any]]:
    """Records by id, each with at least "id" and "report"."""
    from dive.data.absent import is_absent
    from dive.metrics import FINISH_REASONS

    records: dict[str, dict[str, Any]] = {}
    for number, record in json_objects(path):
        for key, kinds in (("id", (str, int)), ("report", str)):
            if key not in record:
                raise DiveError(
                    f"{line_location(path, number)}: has the keys {names_of(record)}, want "
                    '"id" and "report"'
                )
            if key == "report" and record[key] is not None and is_absent(record[key]):
                continue  # NaN, too, is an empty report
            if not isinstance(record[key], kinds) or isinstance(record[key], bool):
                got = "null" if record[key] is None else f"a {type(record[key]).__name__}"
                raise DiveError(
                    f'{line_location(path, number)}: "{key}" is {got}, want a text'
                    + ('; of an empty report, ""' if key == "report" else "")
                )
        name, reason = record["id"], record.get("finish_reason")
        if reason not in (None, *FINISH_REASONS):
            raise DiveError(
                f'{line_location(path, number)}: "finish_reason" is another word, want one of '
                f"{', '.join(FINISH_REASONS)}, or none"
            )
        if str(name) in records:
            raise DiveError(f"{line_location(path, number)}: id {name!r} comes twice")
        records[str(name)] = record
    return records


@dataclass(frozen=True)
class Joined:
    """Files of predictions and their references, joined by id.

    Attributes:
        files: path -> record by id.
        truth: reference by id.
        ids: those that every file has, in the order of the references.
    """

    files: dict[Path, dict[str, dict[str, Any]]]
    truth: dict[str, Reference]
    ids: list[str]

    def reports(self, paths: Sequence[Path]) -> list[list[str]]:
        """The reports of each file."""
        return [[self.files[path][name]["report"] for name in self.ids] for path in paths]

    def finish_reasons(self, paths: Sequence[Path]) -> list[list[Any]]:
        """The finish reasons of each file, None where a record has none."""
        return [
            [self.files[path][name].get("finish_reason") for name in self.ids] for path in paths
        ]

    def references(self) -> list[str]:
        return [self.truth[name].report for name in self.ids]

    def patients(self) -> list[str | None]:
        return [self.truth[name].patient for name in self.ids]

    def without_prediction(self) -> dict[str, list[str]]:
        """File -> the ids of the references for which it has nothing."""
        return {
            str(path): [name for name in self.truth if name not in records]
            for path, records in self.files.items()
        }

    def without_reference(self) -> dict[str, list[str]]:
        """File -> its ids that no reference has."""
        return {
            str(path): [name for name in records if name not in self.truth]
            for path, records in self.files.items()
        }


def joined(
    files: dict[Path, dict[str, Any]],
    references: str,
    truth: dict[str, Reference],
    allow_missing: bool,
) -> Joined:
    """Files and references joined by id; DiveError where their ids differ, unless allowed."""
    for path, records in files.items():
        lost = [name for name in truth if name not in records]
        odd = [name for name in records if name not in truth]
        for names, what in (
            (lost, f"{path} has no prediction"),
            (odd, f"{references} has no reference for what {path} has"),
        ):
            if names and not allow_missing:
                raise DiveError(
                    f"{what} under {counted(len(names), 'id')}: {listed(names)}; --allow-missing "
                    "counts them and scores the rest"
                )
    ids = [name for name in truth if all(name in records for records in files.values())]
    if not ids:
        raise DiveError(f"no id of {references} is in {', '.join(map(str, files))}")
    return Joined(files, truth, ids)
