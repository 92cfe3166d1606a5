"""CheXpert Plus as Stanford AIMI distributes it."""

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

from dive.data.absent import first_present, is_placeholder
from dive.data.datasets.paths import PathFinder, bulk, existing_folder, nested, spread, unique
from dive.data.datasets.tables import check_columns, find_table, read_table, record_location
from dive.data.reading import Candidate, ImageRecord, Options, Reader
from dive.data.skipping import Skipping
from dive.errors import DiveError
from dive.errors.private import kind_of, line_location, public_reason
from dive.files.input import lines_of

log = logging.getLogger(__name__)

_IMAGE = re.compile(
    r"(?:.*/)?((?:train|valid|test)/(patient(\d+)/study(\d+))/view(\d+)_\w+)\.(?:jpe?g|png|dcm)"
)
_STUDY = re.compile(r"(?:train|valid|test)/(patient\d+/study\d+)/")
_COLUMNS = (
    "path_to_image",
    "frontal_lateral",
    "ap_pa",
    "deid_patient_id",
    "section_findings",
    "section_impression",
    "split",
)
_INDICATION = ("section_clinical_history", "section_history")
# The archives unpack to PNG, PNG/PNG or PNGs; the original CheXpert has the same folders in JPEG.
_FOLDERS = r"(?i:pngs?|dicoms?|images|chexpert.*|png_chexpert.*)"
_SUFFIXES = (".png", ".jpg", ".dcm")
_LABELS = ("findings", "impression", "report")


class ChexpertPlus(Reader):
    """The reader of CheXpert Plus, whose records are images.

    Studies are named "patient42142/study5", in numerical order.
    """

    origin = "chexpert-plus"
    splits: ClassVar[Mapping[str, str] | None] = {
        "train": "train",
        "validation": "valid",
        "test": "valid",
    }

    def __init__(self, name: str, root: Path, options: Options, skipping: Skipping) -> None:
        super().__init__(name, options, skipping)
        existing_folder(root, "the folder of CheXpert Plus (with df_chexpert_plus_240401.csv)")
        table = find_table([root], "df_chexpert_plus*")
        if table is None:
            raise DiveError(f"{root}: has no df_chexpert_plus_240401.csv (or .csv.gz)")
        check_columns(table, _COLUMNS)
        self._table = table
        roots = [root]
        if options.images is not None:
            roots = [existing_folder(options.images, "the folder of images"), root]
        folders = unique(folder for one in roots for folder in nested(one, _FOLDERS, depth=3))
        self._folders = [folder for folder in folders if _is_tree(folder)]
        if not self._folders and options.check_files:
            raise DiveError(
                f"{root}: has no folder of images; looked for train/ and valid/ in "
                f"{', '.join(map(str, folders))}; images= names another"
            )
        self._images = PathFinder(
            [
                partial(_image_path, folder, suffix)
                for folder in self._folders or [root / "PNG"]
                for suffix in _SUFFIXES
            ],
            options.check_files,
        )
        self._labels_file = self._find_labels(root)
        self.summary.files = [
            str(path) for path in (self._table, self._labels_file) if path is not None
        ]
        self.summary.note("CheXpert Plus has the splits train and valid, and no test split")
        if options.wanted_split == "test":
            self.summary.note("`valid` is used as test: do not select models by it")
        if options.reports is not None:
            self.summary.note("reports= is not used: the table has the reports")

    def _find_labels(self, root: Path) -> Path | None:
        wanted = self.options.labels
        if wanted is None:
            return None
        if wanted not in ("auto", *_LABELS):
            raise DiveError(
                f"labels is {wanted!r}, want None, auto, {', '.join(_LABELS)} for CheXpert Plus"
            )
        name = wanted
        if wanted == "auto":
            name = self.options.target if self.options.target in _LABELS else "report"
        path = root / "chexbert_labels" / f"{name}_fixed.json"
        if path.is_file():
            return path
        if wanted != "auto":
            raise DiveError(f"there is no file {path} of labels")
        return None

    def candidates(self) -> Iterator[Candidate]:
        studies = self._read_table()
        labels = {} if self._labels_file is None else self._read_labels(self._labels_file, studies)
        order = sorted(studies)
        self._images.probe([studies[key].images[0].key for key in spread(order)])
        for key in order:
            candidate = studies.pop(key)
            candidate.images.sort(key=lambda image: _view_number(image.key))
            line = labels.pop(candidate.id, None)
            if line is not None:
                candidate.labels = self._label_line(*line)
            yield candidate

    @bulk()
    def _read_table(self) -> dict[tuple[int, int], Candidate]:
        path, options = self._table, self.options
        wanted = None if options.wanted_split is None else self.split_for(options.wanted_split)
        studies: dict[tuple[int, int], Candidate] = {}
        seen: set[str] = set()
        for number, cells in read_table(path, _COLUMNS, self.skipping, optional=_INDICATION):
            image, side, position, patient, findings, impression, split, *reasons = cells
            match = _IMAGE.fullmatch(image)
            if match is None:
                self._bad(
                    number,
                    "path_to_image",
                    f"is {kind_of(image)}, want train/patient1/study1/view1_frontal.jpg",
                )
                continue
            if split not in ("train", "valid"):
                self._bad(number, "split", f"is {kind_of(split)}, want train or valid")
                continue
            view = _view(side, position)
            if view is None:
                self._bad(number, "frontal_lateral", f"is {kind_of(side)}, want Frontal or Lateral")
                continue
            name, study = match.group(1), match.group(2)
            if name in seen:
                self.summary.records["repeated records of one image"] += 1
                continue
            seen.add(name)
            key = (int(match.group(3)), int(match.group(4)))
            # A study in another split is only counted, so its text is not kept.
            texts = None
            if wanted in (None, split):
                given = next(filter(None, reasons), "")
                texts = (findings, impression, first_present(*reasons) or given)
            if is_placeholder(patient):
                self.summary.placeholders["patient"] += 1
                patient = ""
            known = studies.get(key)
            if known is None:
                known = studies[key] = Candidate(
                    study,
                    sys.intern(patient or study.partition("/")[0]),
                    sys.intern(split),
                    [],
                    record_location(path, number),
                    texts,
                )
            elif known.split != split:
                self._bad(number, "split", f"is {split!r}, {study} was {known.split!r} before")
                continue
            elif known.data != texts:
                self.summary.note(
                    "records of one study differ in their text; that of the first record is used"
                )
                self.summary.records[
                    "whose text differs from that of the study's first record"
                ] += 1
            known.images.append(ImageRecord(name, view, number))
        if not studies:
            raise DiveError(f"{path.name}: lists no image")
        return studies

    def _bad(self, number: int, column: str, reason: str) -> None:
        self.skipping.skip_or_raise(
            None, f"{record_location(self._table, number)}, column {column!r}", reason
        )
        self.summary.records["bad records"] += 1

    @bulk()
    def _read_labels(
        self, path: Path, studies: Mapping[tuple[int, int], Candidate]
    ) -> dict[str, tuple[str, str]]:
        """study -> (line, its source), the first line of each study, which is parsed on access."""
        wanted = {candidate.id for candidate in studies.values() if candidate.data is not None}
        found: dict[str, tuple[str, str]] = {}
        try:
            for number, raw in lines_of(path):
                line = raw.decode("utf-8")
                match = _STUDY.search(line)
                if match is None and line.strip():
                    self.skipping.skip_or_raise(
                        None, line_location(path, number), "has no path_to_image of a study"
                    )
                elif match and match.group(1) in wanted and match.group(1) not in found:
                    found[match.group(1)] = (line, line_location(path, number))
        except (OSError, UnicodeDecodeError) as error:
            self.skipping.skip_or_raise(None, path.name, f"cannot be read: {public_reason(error)}")
        return found

    def _label_line(self, line: str, source: str) -> dict[str, float] | None:
        try:
            record = json.loads(line)
            del record["path_to_image"]
            lost = [name for name, value in record.items() if is_placeholder(value)]
            self.summary.placeholders.update({"label": len(lost)} if lost else {})
            labels = {
                name: float(value)
                for name, value in record.items()
                if value is not None and name not in lost
            }
            if not set(labels.values()) <= {1.0, 0.0, -1.0}:
                raise ValueError("a label is not one of 1, 0, -1, null")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self.skipping.skip_or_raise(
                None, source, "is not an object with path_to_image and labels 1, 0, -1, null"
            )
            log.info("%s: %s", source, error)  # the error may quote the line
            return None
        return labels

    def sections(self, candidate: Candidate) -> Mapping[str, str | None]:
        findings, impression, indication = candidate.data or ("", "", "")
        return {"findings": findings, "impression": impression, "indication": indication}

    def image_source(self, candidate: Candidate, image: ImageRecord) -> Path:
        return self._images.find(image.key)


def _view(side: str, position: str) -> str | None:
    """The view, PA or AP if the table says so, else FRONTAL or LATERAL; case is ignored."""
    side, position = side.casefold(), position.upper()
    if side == "lateral":
        return "LATERAL"
    if side == "frontal":
        return position if position in ("AP", "PA") else "FRONTAL"
    return None


def _view_number(name: str) -> tuple[int, str]:
    match = re.search(r"view(\d+)_", name)
    return (int(match.group(1)) if match else 0, name)


def _is_tree(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "valid").is_dir()


def _image_path(folder: Path, suffix: str, name: str) -> Path:
    return folder / (name + suffix)
