"""IU X-Ray (Open-i): the pair of tables from Kaggle, or the original XML files and PNGs."""

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from dive.data.absent import is_absent, is_placeholder
from dive.data.datasets.paths import (
    MAX_TEXT_BYTES,
    PathFinder,
    existing_folder,
    nested,
    spread,
    unique,
)
from dive.data.datasets.tables import check_columns, find_table, read_table, record_location
from dive.data.reading import Candidate, ImageRecord, Options, Reader
from dive.data.skipping import Skipping
from dive.errors import DiveError
from dive.errors.private import kind_of
from dive.files.input import NoRegularFile, open_file

_REPORTS = ("uid", "findings", "impression")
_REPORTS_OPTIONAL = ("indication", "Problems")
_PROJECTIONS = ("uid", "filename", "projection")
_FOLDERS = r"(?i:images|images_normalized|NLMCXR.*|ecgen-radiology|png|pngs)"
_FILENAME = re.compile(r"[\w.-]+")
# Percentages, as in R2Gen's split of the same dataset.
_TRAIN, _VALIDATION = 70, 10


class IuXray(Reader):
    """The reader of IU X-Ray; studies are named "CXR1" after their uid, in numerical order.

    The dataset has no official split and no patients. The split of a study depends on (seed, uid)
    alone: the first 8 bytes of SHA-256 of "seed/uid", as a share of all values, below 0.7 train,
    below 0.8 validate, else test. Removing studies changes no other.
    """

    origin = "iu-xray"

    def __init__(self, name: str, root: Path, options: Options, skipping: Skipping) -> None:
        super().__init__(name, options, skipping)
        wants = "indiana_reports.csv with indiana_projections.csv, or ecgen-radiology/*.xml"
        existing_folder(root, f"the folder of IU X-Ray ({wants})")
        if options.labels not in (None, "auto", "problems"):
            raise DiveError(f"labels is {options.labels!r}, want None, auto, problems for IU X-Ray")
        reports = options.reports or root
        tables = [root, reports]
        self._projections = find_table(tables, "indiana_projections")
        self._reports = find_table(tables, "indiana_reports")
        self._xml: dict[int, Path] = {}
        if self._reports is not None:
            check_columns(self._reports, _REPORTS)
            if self._projections is None:
                raise DiveError(f"{root}: has indiana_reports.csv, but no indiana_projections.csv")
        else:
            self._xml = _xml_files(existing_folder(reports, "the folder of reports"))
            if not self._xml:
                raise DiveError(f"{root}: has no reports, want {wants}")
        if self._projections is not None:
            check_columns(self._projections, _PROJECTIONS)
        elif options.views not in (None, "all"):
            raise DiveError(
                f"views is {options.views!r}, and the XML files do not name the views; "
                f"put indiana_projections.csv into {root}, or use every image with views='all'"
            )
        else:
            self.default_views, self.default_max_images = "all", None
            self.summary.note("the XML files name no views: every image of a study is used")
        roots = [root] if options.images is None else [options.images, root]
        folders = unique(
            f for r in roots for f in nested(existing_folder(r, "images"), _FOLDERS, depth=2)
        )
        # Deepest first: seven thousand images are unlikely to be in the root itself.
        folders.sort(key=lambda folder: -len(folder.parts))
        self._images = PathFinder(
            [partial(way, folder) for folder in folders for way in (_plain, _as_kaggle, _as_xml)],
            options.check_files,
        )
        self.summary.files = [
            str(path) for path in (self._reports, self._projections) if path is not None
        ]
        self.summary.note(
            f"no official split: 70/10/20 by a hash of seed {options.seed} and uid; no patients"
        )

    def candidates(self) -> Iterator[Candidate]:
        images = self._read_projections()
        if self._reports is None:
            yield from self._from_xml(images)
            return
        found: dict[int, Candidate] = {}
        path, skipping = self._reports, self.skipping
        for number, cells in read_table(path, _REPORTS, skipping, optional=_REPORTS_OPTIONAL):
            uid, findings, impression, indication, problems = cells
            if not uid.isdecimal():
                self._bad(path, number, "uid", f"is {kind_of(uid)}, want a whole number")
                continue
            texts = {"findings": findings, "impression": impression, "indication": indication}
            key = int(uid)
            if key in found:
                if found[key].data == texts:
                    self.summary.records["repeated records of one report"] += 1
                else:
                    self._bad(path, number, "uid", f"{key} comes twice, with different reports")
                continue
            found[key] = self._candidate(
                key, images.get(key, []), record_location(path, number), texts
            )
            found[key].labels = self._problems(problems.split(";"))
        for key in sorted(images.keys() - found.keys()):
            self.summary.records["images without a report"] += len(images[key])
        order = sorted(found)
        with_images = [key for key in order if found[key].images]
        self._images.probe([found[key].images[0].key for key in spread(with_images)])
        for key in order:
            yield found[key]

    def _from_xml(self, listed: Mapping[int, list[ImageRecord]]) -> Iterator[Candidate]:
        probed = False
        for number in sorted(self._xml):
            path = self._xml[number]
            try:
                root = _parse(path)
            except DiveError as error:
                self.summary.studies += 1
                self.summary.failed += 1
                self.skipping.skip_or_raise(f"CXR{number}", path.name, error)
                continue
            texts: dict[str, str | None] = {}
            for part in root.iter("AbstractText"):
                texts[part.get("Label", "").strip().lower()] = "".join(part.itertext())
            images = listed.get(number)
            if images is None:
                images = [
                    ImageRecord(image.get("id", ""), "", 0)
                    for image in root.iter("parentImage")
                    if _FILENAME.fullmatch(image.get("id", ""))
                ]
            candidate = self._candidate(number, images, path.name, texts)
            tags = [(tag.text or "").partition("/")[0] for tag in root.iter("major")]
            candidate.labels = self._problems(tags)
            if images and not probed:
                self._images.probe([image.key for image in images])
                probed = True
            yield candidate

    def _candidate(
        self, number: int, images: list[ImageRecord], source: str, texts: dict
    ) -> Candidate:
        split = hashed_split(self.options.seed, number)
        return Candidate(f"CXR{number}", None, split, images, source, texts)

    def _problems(self, names: list[str]) -> dict[str, float] | None:
        """The manual tags ("normal", "Cardiomegaly", ...) as positive labels."""
        if self.options.labels is None:
            return None
        for name in names:
            if is_placeholder(name):
                self.summary.placeholders["label"] += 1
        return {name.strip(): 1.0 for name in names if not is_absent(name)}

    def _read_projections(self) -> dict[int, list[ImageRecord]]:
        found: dict[int, list[ImageRecord]] = {}
        path = self._projections
        if path is None:
            return found
        seen: set[str] = set()
        for number, (uid, filename, projection) in read_table(path, _PROJECTIONS, self.skipping):
            if not uid.isdecimal():
                self._bad(path, number, "uid", f"is {kind_of(uid)}, want a whole number")
                continue
            if not _FILENAME.fullmatch(filename) or filename.startswith("."):
                self._bad(
                    path, number, "filename", f"is {kind_of(filename)}, want the name of a file"
                )
                continue
            if filename in seen:
                self.summary.records["repeated records of one image"] += 1
                continue
            seen.add(filename)
            if is_placeholder(projection):
                self.summary.placeholders["view"] += 1
                projection = ""
            found.setdefault(int(uid), []).append(ImageRecord(filename, projection.upper(), number))
        for images in found.values():
            images.sort(key=lambda image: image.key)
        return found

    def _bad(self, path: Path, number: int, column: str, reason: str) -> None:
        self.skipping.skip_or_raise(
            None, f"{record_location(path, number)}, column {column!r}", reason
        )
        self.summary.records["bad records"] += 1

    def sections(self, candidate: Candidate) -> Mapping[str, str | None]:
        return candidate.data

    def image_source(self, candidate: Candidate, image: ImageRecord) -> Path:
        return self._images.find(image.key)


def hashed_split(seed: int, uid: int) -> str:
    """The split (train, validate or test) of a study in a dataset without an official one."""
    digest = hashlib.sha256(f"{seed}/{uid}".encode()).digest()
    part = int.from_bytes(digest[:8], "big") * 100 >> 64
    if part < _TRAIN:
        return "train"
    return "validate" if part < _TRAIN + _VALIDATION else "test"


def _xml_files(root: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for folder in nested(root, _FOLDERS, depth=2):
        for path in folder.glob("*.xml"):
            if path.stem.isdecimal():
                found.setdefault(int(path.stem), path)
    return found


def _parse(path: Path) -> ElementTree.Element:
    try:
        with open_file(path) as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except NoRegularFile as error:
        raise DiveError(f"{path.name}: is {error.kind}, want a regular file") from None
    except OSError as error:
        raise DiveError(f"{path.name}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_TEXT_BYTES:
        raise DiveError(f"{path.name}: has more than {MAX_TEXT_BYTES:,} bytes, want one report")
    if b"<!ENTITY" in data:  # a few of them can expand to gigabytes, and no report has any
        raise DiveError(f"{path.name}: declares entities, want a plain report")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DiveError(f"{path.name}: is not XML ({error}); is the download complete?") from error


def _plain(folder: Path, name: str) -> Path:
    return folder / (name if name.endswith(".png") else f"{name}.png")


def _as_kaggle(folder: Path, name: str) -> Path:
    """The path in Kaggle's copy: CXR1_1_IM-0001-4001 of the XML files is 1_IM-0001-4001.dcm.png."""
    return folder / f"{re.sub(r'^CXR[0-9]+_', '', name)}.dcm.png"


def _as_xml(folder: Path, name: str) -> Path:
    stem = name.removesuffix(".png").removesuffix(".dcm")
    return folder / f"CXR{stem.partition('_')[0]}_{stem}.png"
