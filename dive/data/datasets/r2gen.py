"""The annotation.json of R2Gen and its successors, for IU X-Ray, MIMIC-CXR and others."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from dive.data.absent import is_absent, is_placeholder
from dive.data.datasets.paths import PathFinder, bulk, spread, unique
from dive.data.reading import Candidate, ImageRecord, Options, Reader
from dive.data.skipping import Skipping
from dive.errors import DiveError
from dive.errors.private import names_of, public_reason
from dive.files.input import MAX_JSON_BYTES, read_file

_SPLITS = ("train", "val", "test")
_KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "id": ((str, int), "a string or a whole number"),
    "report": ((str,), "a string"),
    "image_path": ((list,), "a list of paths"),
}
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
_FOLDERS = ("images", "images300", "files", "PNGs", "PNG", ".")


class R2Gen(Reader):
    """One study per item, in the order of the file; its `report` is read as findings.

    Items of IU X-Ray have two images, and both are shown. An item of MIMIC-CXR (with `study_id` or
    `subject_id`) is a single image, so that a study occurs as often as it has images: that is the
    protocol of the numbers published with this file.
    """

    splits: ClassVar[Mapping[str, str] | None] = {
        "train": "train",
        "validation": "val",
        "test": "test",
    }
    default_views = "all"
    default_max_images = None

    def __init__(self, name: str, path: Path, options: Options, skipping: Skipping) -> None:
        super().__init__(name, options, skipping)
        if path.is_dir():
            path = path / "annotation.json"
        if not path.is_file():
            raise DiveError(f"there is no file {path}, want R2Gen's annotation.json")
        if options.target not in (None, "findings"):
            raise DiveError(
                f"{path}: has findings only, and the target is {options.target!r}, "
                "want target='findings'"
            )
        if self.views is not None:
            raise DiveError(f"{path}: knows no views; leave out views={options.views!r}")
        self._path = path
        parents = [path.parent] if options.images is None else [options.images]
        folders = unique(parent / folder for parent in parents for folder in _FOLDERS)
        self._images = PathFinder(
            [partial(_image_path, folder) for folder in folders if folder.is_dir()]
            or [partial(_image_path, folders[0])],
            options.check_files,
        )
        self.summary.files = [str(path)]

    def candidates(self) -> Iterator[Candidate]:
        groups = self._load()
        seen: dict[str, str] = {}
        candidates: list[Candidate] = []
        for split in _SPLITS:
            for number, item in enumerate(groups.pop(split, ())):
                source = f"{self._path.name}: {split}[{number}]"
                try:
                    candidate = self._candidate(item, split, source)
                    if candidate.id in seen:
                        raise DiveError(f"{source}: id {candidate.id!r} is {seen[candidate.id]}'s")
                except DiveError as error:
                    self.skipping.skip_or_raise(None, source, error)
                    self.summary.records["bad items"] += 1
                    continue
                seen[candidate.id] = f"{split}[{number}]"
                candidates.append(candidate)
        if not candidates:
            raise DiveError(f"{self._path.name}: has no usable item")
        if any(candidate.patient for candidate in candidates):
            self.summary.note("an item is an image: a study occurs as often as it has images")
        self._images.probe([candidate.images[0].key for candidate in spread(candidates)])
        # Popped from the reversed list, so that the memory of a candidate is freed after its study.
        candidates.reverse()
        while candidates:
            yield candidates.pop()

    @bulk()
    def _load(self) -> dict[str, list]:
        try:
            groups = json.loads(read_file(self._path, MAX_JSON_BYTES).decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise DiveError(
                f"{self._path.name}: line {error.lineno}, column {error.colno}: is not JSON "
                f"({error.msg}); is the download complete?"
            ) from None
        except (OSError, UnicodeDecodeError, RecursionError) as error:
            raise DiveError(f"cannot read {self._path.name}: {public_reason(error)}") from error
        if not isinstance(groups, dict) or not any(
            isinstance(groups.get(split), list) for split in _SPLITS
        ):
            keys = names_of(groups) if isinstance(groups, dict) else type(groups).__name__
            raise DiveError(f"{self._path.name}: has {keys}, want lists train, val and test")
        for split in _SPLITS:
            if not isinstance(groups.get(split, []), list):
                raise DiveError(f"{self._path.name}: {split!r} is no list")
        return groups

    def _candidate(self, item: Any, split: str, source: str) -> Candidate:
        if not isinstance(item, dict):
            raise DiveError(f"{source}: is no object")
        for key, (kinds, wanted) in _KEYS.items():
            if key == "report" and is_placeholder(item.get(key)):
                continue  # NaN is absent, too
            if not isinstance(item.get(key), kinds) or not item[key]:
                have = names_of(item)
                raise DiveError(
                    f"{source}: {key!r} is {_state(item, key)}, want {wanted} (keys: {have})"
                )
        if item.get("split", split) != split:
            raise DiveError(f"{source}: 'split' is another in the list {split!r}")
        paths = item["image_path"]
        for path in paths:
            if not isinstance(path, str) or not path or _leaves(path):
                raise DiveError(
                    f"{source}: 'image_path' has another item, want paths under images/"
                )
        subject = item.get("subject_id")
        if subject is not None or "study_id" in item:
            paths = paths[:1]
        return Candidate(
            str(item["id"]),
            None if is_absent(subject) else f"p{subject}".replace("pp", "p"),
            split,
            [ImageRecord(path, "", number) for number, path in enumerate(paths)],
            source,
            item["report"],
            origin=None
            if subject is None
            else "mimic-cxr",  # the dataset of R2Gen's own file with subjects
        )

    def sections(self, candidate: Candidate) -> Mapping[str, str | None]:
        return {"findings": candidate.data}

    def image_source(self, candidate: Candidate, image: ImageRecord) -> Path:
        return self._images.find(image.key)


def _state(item: dict, key: str) -> str:
    if item.get(key) is None:
        return "not there"
    return "empty" if not item[key] else _KINDS.get(type(item[key]), "a number")


def _leaves(path: str) -> bool:
    pure = PurePosixPath(path.replace("\\", "/"))
    return pure.is_absolute() or ".." in pure.parts


def _image_path(folder: Path, name: str) -> Path:
    return folder / name
