"""Readers of data with one record per study: JSON lines, and dataset objects of Hugging Face."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from dive.data.absent import count_placeholders, is_absent
from dive.data.datasets.json_lines import studies_of
from dive.data.images.load import LazyImage
from dive.data.reading import SPLITS, Candidate, ImageRecord, Options, Reader
from dive.data.skipping import Skipping
from dive.data.study import Study
from dive.errors import DiveError
from dive.errors.private import names_of

# Our names -> the columns to look for, the first that exists, unless the caller names one.
_COLUMNS = {
    "id": ("id", "study_id", "uid"),
    "images": ("images", "image", "image_path", "image_paths", "path_to_image"),
    "patient": ("patient", "subject_id", "patient_id", "deid_patient_id"),
    "indication": ("indication", "section_indication", "section_clinical_history"),
    "findings": ("findings", "section_findings"),
    "impression": ("impression", "section_impression"),
    "split": ("split",),
}


class RecordReader(Reader):
    """A reader that leaves texts unchanged and accepts any name of a split (val, valid, ...)."""

    default_views = "all"
    default_max_images = None
    tidy = False

    def split_for(self, wanted: str) -> str:
        return wanted

    def _split(self, value: Any, source: str) -> str | None:
        """The common name of a split, so that "val" and "validate" are the same."""
        if is_absent(value):
            if self.options.split is not None:
                raise DiveError(f"{source}: has no 'split', and split is {self.options.split!r}")
            return None
        return SPLITS.get(str(value).casefold(), str(value))

    def _no_use(self) -> None:
        """Refuse options for datasets with tables and report files, which would be ignored."""
        options = self.options
        given = {
            "reports": options.reports is not None,
            "sections": options.sections != "auto",
            "last_paragraph": options.last_paragraph,
            "labels": options.labels not in (None, "auto"),
        }
        useless = [name for name, there in given.items() if there]
        if useless:
            raise DiveError(
                f"{self.summary.source}: has one record per study, for which "
                f"{', '.join(useless)} is of no use; leave it out"
            )
        self._no_views()

    def _no_views(self) -> None:
        if self.views is not None:
            raise DiveError(
                f"{self.summary.source} knows no views; leave out views={self.options.views!r}"
            )


class JsonLines(RecordReader):
    """`dive.data.read_studies` with filters.

    Image files and the target must exist: in a file that was written for DIVE, a study without the
    target is an error.
    """

    def __init__(self, name: str, path: Path, options: Options, skipping: Skipping) -> None:
        super().__init__(name, options, skipping)
        self._no_use()
        self._path = path
        if not path.is_file():
            raise DiveError(f"there is no file {path}, want studies, one JSON object per line")
        self.summary.files = [str(path)]

    def candidates(self) -> Iterator[Candidate]:
        before = len(self.skipping.skipped)
        studies = studies_of(
            self._path,
            target=self.options.target,
            images=self.options.images,
            on_error=self.skipping.on_error,
            skipped=self.skipping.skipped,
            placeholders=self.summary.placeholders,
        )
        lost = len(self.skipping.skipped) - before
        if lost:
            self.summary.records["bad lines"] += lost
        for study in studies:
            try:
                split = self._split(study.split, study.where)
            except DiveError as error:
                self.skipping.skip_or_raise(study.id, study.source, error)
                self.summary.records["bad lines"] += 1
                continue
            images = [ImageRecord(image, "", number) for number, image in enumerate(study.images)]
            yield Candidate(
                study.id, study.patient, split, images, study.source, study, origin=study.origin
            )

    def sections(self, candidate: Candidate) -> Mapping[str, str | None]:
        study: Study = candidate.data
        return {name: getattr(study, name) for name in ("findings", "impression", "indication")}

    def image_source(self, candidate: Candidate, image: ImageRecord) -> Path:
        return image.key


class DatasetRecords(RecordReader):
    """The reader of any iterable of dicts, or a mapping of split names to such (a `DatasetDict`).

    Images are decoded when they are loaded, if records can be read by index; those of a stream stay
    in memory undecoded.
    """

    def __init__(self, name: str, records: Any, options: Options, skipping: Skipping) -> None:
        super().__init__(name, options, skipping)
        self._no_use()
        unknown = set(options.columns) - set(_COLUMNS)
        if unknown:
            raise DiveError(
                f"columns names {', '.join(sorted(unknown))}, want some of {', '.join(_COLUMNS)}"
            )
        self._parts: list[tuple[str | None, Any]] = [(None, records)]
        if isinstance(records, Mapping):
            self._parts = [(str(split), part) for split, part in records.items()]
        for split, part in self._parts:
            if isinstance(part, (str, bytes)) or not isinstance(part, Iterable):
                raise DiveError(f"{name}: split {split!r} is a {type(part).__name__}, want records")

    def candidates(self) -> Iterator[Candidate]:
        seen: set[str] = set()
        for split, records in self._parts:
            wanted = self.options.wanted_split
            if split is not None and wanted and SPLITS.get(split.casefold(), split) != wanted:
                # A part of a DatasetDict that is not requested is not opened.
                self.summary.records[f"of the split {split}"] += (
                    len(records) if _sized(records) else 0
                )
                continue
            location = self.summary.source if split is None else f"{self.summary.source}[{split!r}]"
            stored = _undecoded(records)
            for number, record in enumerate(stored):
                # "row" as before: unfinished trainings know lazy images by such names
                source = f"{location}: row {number}"
                try:
                    candidate = self._candidate(record, records, number, split, source)
                    if candidate.id in seen:
                        raise DiveError(f"{source}: id {candidate.id!r} was used already")
                except DiveError as error:
                    self.skipping.skip_or_raise(None, source, error)
                    self.summary.records["bad records"] += 1
                    continue
                seen.add(candidate.id)
                yield candidate

    def _candidate(
        self, record: Any, records: Any, number: int, split: str | None, source: str
    ) -> Candidate:
        if not isinstance(record, Mapping):
            raise DiveError(f"{source}: is a {type(record).__name__}, want a dict")
        names = {key: self._column(key, record, source) for key in _COLUMNS}
        values = {key: None if name is None else record[name] for key, name in names.items()}
        for key in ("patient", "split", *(["id"] if not isinstance(values["id"], str) else [])):
            values |= count_placeholders(self.summary.placeholders, {key: values[key]})
        for key in ("findings", "impression", "indication"):
            if not isinstance(values[key], str) and not is_absent(values[key]):
                raise DiveError(
                    f"{source}: column {names[key]!r} is a {type(values[key]).__name__}, "
                    "want a string"
                )
        identifier = number if values["id"] is None else values["id"]
        name = f"row-{number}" if values["id"] is None else str(identifier)
        if values["id"] is None and split is not None:
            name = f"{split}-{number}"
        column = str(names["images"])
        many = values["images"] if isinstance(values["images"], (list, tuple)) else None
        images: list[ImageRecord] = []
        for at, value in enumerate([values["images"]] if many is None else many):
            index = None if many is None else at
            where = f"{source}, column {column!r}" + ("" if index is None else f"[{index}]")
            if is_absent(value):
                raise DiveError(
                    f"{where}: is {'null' if value is None else 'a placeholder'}, want an image"
                )
            if isinstance(value, (str, os.PathLike)):
                images.append(ImageRecord(self._path(os.fspath(value)), "", at))
                continue
            if _sized(records) and hasattr(records, "__getitem__"):
                fetch = partial(_fetch, records, number, column, index, where)
            else:
                self.summary.note("records cannot be read by index: images stay in memory")
                fetch = partial(_opened, value, where)
            images.append(ImageRecord(LazyImage(where, fetch), "", at))
        patient = None if values["patient"] is None else str(values["patient"])
        named = self._split(split if values["split"] is None else values["split"], source)
        return Candidate(name, patient, named, images, source, values)

    def _path(self, name: str) -> Path:
        path = Path(os.path.expanduser(name))
        return path if self.options.images is None else self.options.images / path

    def _column(self, key: str, record: Mapping, source: str) -> str | None:
        given = self.options.columns.get(key)
        if given is not None:
            if given not in record:
                raise DiveError(f"{source}: has no column {given!r}; it has {names_of(record)}")
            return given
        found = next((name for name in _COLUMNS[key] if name in record), None)
        target = self.options.target
        needed = {"images", *(("findings", "impression") if target == "both" else (target,))}
        if found is None and key in needed:
            raise DiveError(
                f"{source}: has no column of {key} ({', '.join(_COLUMNS[key])}); it has "
                f"{names_of(record)}; columns={{{key!r}: ...}} names one"
            )
        return found

    def sections(self, candidate: Candidate) -> Mapping[str, str | None]:
        return candidate.data

    def image_source(self, candidate: Candidate, image: ImageRecord) -> Any:
        return image.key


def _sized(records: Any) -> bool:
    return hasattr(records, "__len__")


def _undecoded(records: Any) -> Iterable[Any]:
    """The same records with the image columns of a `datasets` object as {"bytes", "path"}.

    Decoding every image only to read the texts would take hours.
    """
    features = getattr(records, "features", None)
    if not type(records).__module__.startswith("datasets") or not features:
        return records
    import datasets

    for name, feature in features.items():
        if isinstance(feature, datasets.Image):
            records = records.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            records = records.cast_column(name, type(feature)(datasets.Image(decode=False)))
    return records


def _fetch(records: Any, number: int, column: str, index: int | None, where: str) -> Any:
    value = records[number][column]
    return _opened(value if index is None else value[index], where)


def _opened(value: Any, where: str) -> Any:
    """The value of a `LazyImage`: a path, bytes or a PIL image."""
    if isinstance(value, (bytes, Path, Image.Image)):
        return value
    if isinstance(value, str):
        return Path(value)
    if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
        return value["bytes"] if value.get("bytes") else Path(value["path"])
    raise DiveError(
        f"{where}: is a {type(value).__name__}, want a PIL image, a path, or bytes and path"
    )


def is_records(spec: Any) -> bool:
    """Whether `spec` is an iterable of records, and not the name of a file or dataset."""
    return isinstance(spec, (Mapping, Sequence, Iterable)) and not isinstance(
        spec, (str, bytes, os.PathLike)
    )
