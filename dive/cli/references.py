"""References as `dive evaluate` and `dive report` read them: studies with a report, by id."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dive.cli.json_records import json_objects
from dive.cli.options import open_all
from dive.errors import DiveError
from dive.errors.private import line_location

if TYPE_CHECKING:
    from dive.data import Study

_SECTIONS = ("findings", "impression")


class Reference(NamedTuple):
    """The report of a radiologist, whose it is (None: not known), and the study that it is of."""

    report: str
    patient: str | None
    study: "Study"


def references_of(
    spec: str, target: str, options: dict[str, Any], allow_missing: bool, *, films: bool = False
) -> dict[str, Reference]:
    """References by id. Images need not exist.

    Args:
        spec: JSON lines or a dataset.
        target: section that each must have.
        options: of `dive.data.open_studies`.
        allow_missing: a reference that is empty by a word such as "nan" is kept, without its text.
        films: whether JSON lines' images are wanted: paths of another form are an error, and
            `options` may name their folder. Without it, they are read where they are paths.

    Raises:
        DiveError: a record without an id or text, an id that comes twice, no reference.
    """
    from dive.data import check_target
    from dive.data.open import parse_spec

    check_target(target)
    kind, path = parse_spec(spec)
    if kind == "jsonl":
        return _of_lines(path, spec, target, dict(options), allow_missing, films)
    found = open_all(spec, target=target, **options | {"check_files": False})
    return {one.id: Reference(one.report(target), one.patient, one) for one in found}


def _of_lines(
    path: Path,
    spec: str,
    target: str,
    options: dict[str, Any],
    allow_missing: bool,
    films: bool,
) -> dict[str, Reference]:
    """The readers of JSON lines need the images; only some of their options apply here."""
    from dive.data.absent import is_absent
    from dive.data.reading import SPLITS

    split = options.pop("split", None)
    folder = options.pop("images", None) if films else None
    if split is not None and split.casefold() not in SPLITS:
        raise DiveError(f"--split is {split!r}, want one of {', '.join(SPLITS)}")
    unused = [name for name, value in options.items() if value not in (None, False)]
    if unused:
        raise DiveError(f"{spec}: is JSON lines, for which {', '.join(unused)} has no use")
    found: dict[str, Reference] = {}
    for number, record in json_objects(path):
        where = line_location(path, number)
        if split is not None and not _is_of(record, split, where):
            continue
        study = _study(record, where, folder or path.parent, films)
        given = [record.get(name) for name in _SECTIONS]
        if study.id in found:
            raise DiveError(f"{where}: id {study.id!r} comes twice")
        try:
            report = study.report(target)
        except DiveError:
            empty = any(isinstance(one, str) and is_absent(one) for one in given)
            if not allow_missing or not empty:
                raise
            report = ""  # counted as an empty reference
        found[study.id] = Reference(report, study.patient, study)
    if not found:
        raise DiveError(f"{path.name}: no reference is of the split {split!r}")
    return found


def _is_of(record: dict[str, Any], split: str, where: str) -> bool:
    from dive.data.reading import SPLITS

    own = record.get("split")
    if not isinstance(own, str):
        raise DiveError(f"{where}: has no 'split', and --split is {split!r}")
    return SPLITS.get(own.casefold(), own) == SPLITS[split.casefold()]


def _study(record: dict[str, Any], where: str, folder: Path, films: bool) -> "Study":
    """The study of a line; folder: of its images' paths. films: whether others are an error."""
    from dive.data import Study
    from dive.data.absent import is_absent

    name = record.get("id")
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise DiveError(f'{where}: "id" is missing')
    texts: dict[str, Any] = {key: record.get(key) for key in (*_SECTIONS, "indication")}
    for key, text in texts.items():
        if not isinstance(text, str) and not is_absent(text):
            raise DiveError(f"{where}: {key!r} is no text, want a text")
    patient = record.get("patient")
    if isinstance(patient, bool) or not (is_absent(patient) or isinstance(patient, (str, int))):
        raise DiveError(f'{where}: "patient" is a {type(patient).__name__}, want a text')
    images: Any = record.get("images")
    if not (isinstance(images, list) and all(isinstance(one, str) for one in images)):
        if films and images is not None:
            raise DiveError(f'{where}: "images" is no list of paths')
        images = []
    return Study(
        id=str(name),
        images=tuple(folder / os.path.expanduser(one) for one in images),
        source=where,
        # blank is unknown, too
        patient=None if is_absent(patient) else str(patient),
        **texts,
    )
