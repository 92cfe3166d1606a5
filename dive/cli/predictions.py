"""Predictions and references as `dive evaluate` reads them, joined by id."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dive.cli.options import open_all
from dive.errors import DiveError
from dive.errors.counting import counted
from dive.errors.private import line_location, names_of

_SHOWN = 8  # ids named in a message


class Reference(NamedTuple):
    """The report of a radiologist, and whose it is; None where the patient is not known."""

    report: str
    patient: str | None


def predictions_of(path: Path) -> dict[str, dict[str, Any]]:
    """Records by id, each with at least "id" and "report"."""
    from dive.data.absent import is_absent
    from dive.metrics import FINISH_REASONS

    records: dict[str, dict[str, Any]] = {}
    for number, record in _lines(path):
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


def references_of(
    spec: str, target: str, options: dict[str, Any], allow_missing: bool
) -> dict[str, Reference]:
    """References by id. Images need not exist."""
    from dive.data import Study, check_target
    from dive.data.absent import is_absent
    from dive.data.open import parse_spec
    from dive.data.reading import SPLITS

    check_target(target)
    kind, path = parse_spec(spec)
    if kind != "jsonl":
        found = open_all(spec, target=target, **options | {"check_files": False})
        return {study.id: Reference(study.report(target), study.patient) for study in found}
    # the readers of JSON lines need the images; only this one of their options applies here
    split = options.pop("split", None)
    if split is not None and split.casefold() not in SPLITS:
        raise DiveError(f"--split is {split!r}, want one of {', '.join(SPLITS)}")
    unused = [name for name, value in options.items() if value not in (None, False)]
    if unused:
        raise DiveError(f"{spec}: is JSON lines, for which {', '.join(unused)} has no use")
    reports: dict[str, Reference] = {}
    for number, record in _lines(path):
        if split is not None:
            own = record.get("split")
            if not isinstance(own, str):
                raise DiveError(
                    f"{line_location(path, number)}: has no 'split', and --split is {split!r}"
                )
            if SPLITS.get(own.casefold(), own) != SPLITS[split.casefold()]:
                continue
        name = record.get("id")
        if not isinstance(name, (str, int)):
            raise DiveError(f'{line_location(path, number)}: "id" is missing')
        if str(name) in reports:
            raise DiveError(f"{line_location(path, number)}: id {name!r} comes twice")
        texts: dict[str, Any] = {key: record.get(key) for key in ("findings", "impression")}
        for key, text in texts.items():
            if not isinstance(text, str) and not is_absent(text):
                raise DiveError(f"{line_location(path, number)}: {key!r} is no text, want a text")
        study = Study(id=str(name), images=(), source=f"{line_location(path, number)}", **texts)
        patient = _patient(record, line_location(path, number))
        try:
            reports[study.id] = Reference(study.report(target), patient)
        except DiveError:
            if not allow_missing or not study.placeholders:
                raise
            reports[study.id] = Reference("", patient)  # counted as an empty reference
    if not reports:
        raise DiveError(f"{path.name}: no reference is of the split {split!r}")
    return reports


def _patient(record: dict[str, Any], where: str) -> str | None:
    """The patient of a record, None where it is absent or blank."""
    from dive.data.absent import is_absent

    value = record.get("patient")
    if is_absent(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DiveError(f'{where}: "patient" is a {type(value).__name__}, want a text')
    return str(value)


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
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
                listed = ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
                raise DiveError(
                    f"{what} under {counted(len(names), 'id')}: {listed}; --allow-missing counts "
                    "them and scores the rest"
                )
    ids = [name for name in truth if all(name in records for records in files.values())]
    if not ids:
        raise DiveError(f"no id of {references} is in {', '.join(map(str, files))}")
    return Joined(files, truth, ids)
