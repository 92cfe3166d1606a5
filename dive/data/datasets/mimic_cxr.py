"""MIMIC-CXR and MIMIC-CXR-JPG as PhysioNet distributes them."""

import logging
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from dive.data.absent import first_present, is_placeholder
from dive.data.datasets.labels import LabelTable
from dive.data.datasets.paths import (
    MAX_TEXT_BYTES,
    PathFinder,
    bulk,
    decode_text,
    existing_folder,
    nested,
    read_text,
    spread,
    unique,
)
from dive.data.datasets.tables import (
    check_columns,
    find_table,
    header_of,
    read_table,
    record_location,
)
from dive.data.reading import Candidate, ImageRecord, Options, Reader
from dive.data.sections import mimic_sections
from dive.data.skipping import Skipping
from dive.errors import DiveError
from dive.errors.private import kind_of, public_reason, without_paths
from dive.files.input import NoRegularFile, open_file

log = logging.getLogger(__name__)

_SUBJECT = re.compile(r"1\d{7}")
_STUDY = re.compile(r"5\d{7}")
_DICOM = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}")
_RECORD = re.compile(f"{_DICOM.pattern} {_SUBJECT.pattern} {_STUDY.pattern}")
_BEGINS = re.compile(r"(?i)\b(?:findings?|impression|conclusion)\s*:")
_SUFFIXES = (".jpg", ".dcm", ".png", ".dcm.gz", ".jpeg")
# Folders of a download by wget, of several versions, or of both parts together.
_FOLDERS = r"physionet\.org|files|mimic-cxr.*|\d+\.\d+\.\d+"
_SPLITS = ("train", "validate", "test")
_LABELS = {
    "chexpert": "mimic-cxr-*-chexpert",
    "negbio": "mimic-cxr-*-negbio",
    "radiologists": "mimic-cxr-*-test-set-labeled",
}


class MimicCxr(Reader):
    """The reader of MIMIC-CXR; studies are named "s50414267", patients "p10000032", in order."""

    origin = "mimic-cxr"

    def __init__(self, name: str, root: Path, options: Options, skipping: Skipping) -> None:
        super().__init__(name, options, skipping)
        wants = "the folder of MIMIC-CXR-JPG or MIMIC-CXR (with files/p10 ... files/p19)"
        roots = [options.images or root, root]
        reports = options.reports or root
        archives = [reports] if reports.is_file() else []
        if not archives:
            roots.append(reports)
        folders = unique(f for r in roots for f in nested(existing_folder(r, wants), _FOLDERS))
        # If `files` itself was passed, the tables are next to it.
        folders += [f.parent for f in folders if _is_tree(f) and f.parent not in folders]
        self._tables(folders)
        trees = [folder for folder in folders if _is_tree(folder)]
        if not trees and options.check_files:
            raise DiveError(
                f"{root}: has no folder files with p10 ... p19 in it, want {wants}; "
                "images= and reports= name folders of their own"
            )
        trees = trees or [root / "files"]
        self._images = PathFinder(
            [partial(_image_path, tree, suffix) for tree in trees for suffix in _SUFFIXES],
            options.check_files,
        )
        self._texts = PathFinder([partial(_text_path, tree) for tree in trees], True)
        archives += [f / "mimic-cxr-reports.zip" for f in folders]
        archive = next((path for path in archives if path.is_file()), None)
        self._archive = None if archive is None else ReportArchive(archive)
        self._sectioned: dict[str, dict[str, str | None]] = {}

    def _tables(self, folders: list[Path]) -> None:
        options, summary = self.options, self.summary
        self._base = next(
            (
                table
                for name in ("mimic-cxr-*-metadata", "cxr-record-list", "mimic-cxr-*-split")
                if (table := find_table(folders, name))
            ),
            None,
        )
        if self._base is None:
            raise DiveError(
                f"{folders[0]}: has no table of images, want mimic-cxr-2.0.0-metadata.csv.gz (or "
                ".csv) of MIMIC-CXR-JPG there"
            )
        columns = ["dicom_id", "subject_id", "study_id"]
        has_views = "ViewPosition" in header_of(self._base)
        if "metadata" in self._base.name or self.views is not None:
            columns.append("ViewPosition")
        if not has_views and "metadata" not in self._base.name and self.views is not None:
            raise DiveError(
                f"{self._base}: has no view positions; put mimic-cxr-2.0.0-metadata.csv.gz of "
                "MIMIC-CXR-JPG next to it, or use every image with views='all'"
            )
        check_columns(self._base, columns)
        self._split = find_table(folders, "mimic-cxr-*-split")
        if self._split is not None:
            check_columns(self._split, ["study_id", "split"])
        elif options.split is not None:
            raise DiveError(
                f"{folders[0]}: has no mimic-cxr-2.0.0-split.csv.gz, and split is {options.split!r}"
            )
        else:
            summary.note("there is no split table: training and test studies are not separated")
        self._sections_table = self._find_sections(folders)
        self._labels = self._find_labels(folders)
        used = (self._base, self._split, self._sections_table, self._labels)
        summary.files = [str(path) for path in unique(path for path in used if path is not None)]

    def _find_sections(self, folders: list[Path]) -> Path | None:
        """The table of sections to take the texts from; None: report files and the rules."""
        sections = self.options.sections
        if isinstance(sections, Path):
            table: Path | None = sections
        elif sections == "auto":
            table = find_table(folders, "mimic_cxr_sectioned")
        elif sections == "rules":
            table = None
        else:
            raise DiveError(f"sections is {sections!r}, want 'auto', 'rules' or the path of a csv")
        if table is None:
            self.summary.policy.append(
                "sections by the community's rules, without its 54 hand-made exceptions; of "
                "sections with the same name the last one counts"
            )
            return None
        check_columns(table, ["study", "findings", "impression"])
        self.summary.policy.append(f"sections from {table.name}; other studies are left out")
        if "indication" not in header_of(table):
            self.summary.note(
                f"{table.name} has no column 'indication': prompts have no indication"
            )
        return table

    def _find_labels(self, folders: list[Path]) -> Path | None:
        wanted = self.options.labels
        if wanted is None:
            return None
        if wanted != "auto" and wanted not in _LABELS:
            raise DiveError(
                f"labels is {wanted!r}, want None, auto, {', '.join(_LABELS)} for MIMIC-CXR"
            )
        table = find_table(folders, _LABELS["chexpert" if wanted == "auto" else wanted])
        if table is None and wanted != "auto":
            raise DiveError(f"{folders[0]}: has no table {_LABELS[wanted]}.csv or .csv.gz")
        if table is not None:
            check_columns(table, ["study_id"])
        return table

    def candidates(self) -> Iterator[Candidate]:
        studies = self._read_images()
        splits = self._read_splits()
        wanted = self.options.wanted_split
        if wanted is not None:
            split = self.split_for(wanted)
            chosen = {study for study in studies if splits.get(study) == split}
        else:
            chosen = set(studies)
        if self._sections_table is not None:
            self._read_sectioned(self._sections_table, chosen)
        labels = None
        if self._labels is not None:
            labels = LabelTable(
                self._labels,
                "study_id",
                self.skipping,
                chosen.__contains__,
                also=("subject_id",),
                placeholders=self.summary.placeholders,
            )
        order = sorted(studies, key=lambda study: (studies[study][0], study))
        sample = [(studies[study][0], study) for study in spread(order)]
        self._images.probe([_key(*one, studies[one[1]][1][0].key) for one in sample])
        self._texts.probe([_key(*one, "") for one in sample])
        for study in order:
            subject, images = studies[study]
            source = record_location(self._base, images[0].number)  # type: ignore[arg-type]
            if self._split is not None and study not in splits:
                lost = f"study {study} has no record in {self._split.name}"
                self.skipping.skip_or_raise(f"s{study}", source, lost)
                self.summary.records["images of studies that the split table does not have"] += len(
                    images
                )
                continue
            images.sort(key=lambda image: image.key)
            yield Candidate(
                f"s{study}",
                f"p{subject}",
                splits.get(study),
                images,
                source,
                (subject, study),
                None if labels is None else labels.get(study),
            )

    @bulk()
    def _read_images(self) -> dict[str, tuple[str, list[ImageRecord]]]:
        """study -> (subject, images), from the table of images."""
        path = self._base
        assert path is not None
        studies: dict[str, tuple[str, list[ImageRecord]]] = {}
        study_of: dict[str, str] = {}
        columns = ("dicom_id", "subject_id", "study_id")
        patterns = (_DICOM, _SUBJECT, _STUDY)
        for number, cells in read_table(path, columns, self.skipping, optional=["ViewPosition"]):
            dicom, subject, study, view = cells
            if not _RECORD.fullmatch(f"{dicom} {subject} {study}"):
                wrong = next(i for i in range(3) if not patterns[i].fullmatch(cells[i]))
                self._bad(
                    path,
                    number,
                    columns[wrong],
                    f"is {kind_of(cells[wrong])}, want {_WANTS[columns[wrong]]}",
                )
                continue
            if dicom in study_of:
                if study_of[dicom] == study:
                    self.summary.records["repeated records of one image"] += 1
                else:
                    self._bad(path, number, "dicom_id", f"is that of study {study_of[dicom]}, too")
                continue
            # Names that several tables have are kept once.
            study = study_of[dicom] = sys.intern(study)
            known = studies.get(study)
            if known is None:
                known = studies[study] = (sys.intern(subject), [])
            elif known[0] != subject:
                self._bad(path, number, "subject_id", f"differs from that of study {study} before")
                continue
            if view and is_placeholder(view):
                self.summary.placeholders["view"] += 1
                view = ""
            known[1].append(ImageRecord(dicom, sys.intern(view.upper()), number))
        if not studies:
            raise DiveError(f"{path.name}: lists no image")
        return studies

    def _bad(self, path: Path, number: int, column: str, reason: str) -> None:
        self.skipping.skip_or_raise(
            None, f"{record_location(path, number)}, column {column!r}", reason
        )
        self.summary.records["bad records"] += 1

    @bulk()
    def _read_splits(self) -> dict[str, str]:
        """study -> train, validate or test."""
        found: dict[str, str] = {}
        if self._split is None:
            return found
        names = {name: name for name in _SPLITS}
        for number, (study, split) in read_table(self._split, ["study_id", "split"], self.skipping):
            if split not in names:
                self._bad(
                    self._split,
                    number,
                    "split",
                    f"is {kind_of(split)}, want one of {', '.join(_SPLITS)}",
                )
                continue
            split = names[split]
            if found.setdefault(sys.intern(study), split) != split:
                self._bad(
                    self._split,
                    number,
                    "split",
                    f"is {split!r}, study {study} was {found[study]!r}",
                )
        return found

    @bulk()
    def _read_sectioned(self, path: Path, wanted: set[str]) -> None:
        columns = ("study", "findings", "impression")
        optional = ("last_paragraph", "indication", "history")
        for number, cells in read_table(path, columns, self.skipping, optional=optional):
            study = cells[0].removeprefix("s")
            if study not in wanted:
                continue
            if study in self._sectioned:
                self._bad(path, number, "study", f"study {study} comes twice")
                continue
            _, findings, impression, last, indication, history = (cell or None for cell in cells)
            self._sectioned[study] = {
                "findings": findings,
                "impression": impression,
                "last_paragraph": last,
                "indication": first_present(indication, history) or indication,
            }

    def sections(self, candidate: Candidate) -> Mapping[str, str | None] | str:
        subject, study = candidate.data
        if self._sections_table is not None:
            return self._sectioned.get(study) or f"without a record in {self._sections_table.name}"
        key = _key(subject, study, "")
        try:
            if self._archive is not None:
                text = self._archive.read(_text_name(key), f"study 's{study}'")
            else:
                text = read_text(self._texts.find(key), f"study 's{study}'")
        except DiveError:
            if self.options.target is None:  # only images are needed
                self.summary.note("some studies have no readable report; none is required")
                return {}
            raise
        found: dict[str, str | None] = dict(mimic_sections(text))
        indication = found.get("indication")
        indication = first_present(indication, found.get("history")) or indication
        cut = _BEGINS.search(indication or "")
        if cut is not None:  # a prompt must not contain the report
            self.summary.records["indications that contain findings, cut before these"] += 1
            indication = str(indication)[: cut.start()]
        found["indication"] = indication
        return found

    def image_source(self, candidate: Candidate, image: ImageRecord) -> Path:
        subject, study = candidate.data
        return self._images.find(_key(subject, study, image.key))


_WANTS = {
    "dicom_id": "five groups of eight hexadecimal digits",
    "subject_id": "eight digits that begin with 1",
    "study_id": "eight digits that begin with 5",
}


def _is_tree(folder: Path) -> bool:
    return any((folder / f"p{number}").is_dir() for number in range(10, 20))


def _key(subject: str, study: str, dicom: str) -> str:
    return f"p{subject[:2]}/p{subject}/s{study}/{dicom}"


def _image_path(tree: Path, suffix: str, key: str) -> Path:
    return tree / (key + suffix)


def _text_name(key: str) -> str:
    return key.rstrip("/") + ".txt"


def _text_path(tree: Path, key: str) -> Path:
    return tree / _text_name(key)


class ReportArchive:
    """The archive mimic-cxr-reports.zip, from which reports are read one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(open_file(path))
        except NoRegularFile as error:
            raise DiveError(f"{path.name}: is {error.kind}, want a zip archive") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise DiveError(
                f"{path.name}: is not a complete zip archive ({public_reason(error)}); "
                "download it again"
            ) from error
        names = (re.search(r"^(.*?)p1\d/p1\d{7}/s5\d{7}\.txt$", n) for n in self._zip.namelist())
        first = next(filter(None, names), None)
        if first is None:
            raise DiveError(f"{path.name}: has no files/p10/p10000032/s50414267.txt or the like")
        self._prefix = first.group(1)

    def read(self, name: str, study: str) -> str:
        """Read one report; messages name `study`, because the member's name names the patient."""
        member = f"{self._prefix}{name}"
        where = f"{self.path.name}: the report of {study}"
        try:
            # The size in the archive's directory may be false (a zip bomb).
            with self._zip.open(member) as file:
                data = file.read(MAX_TEXT_BYTES + 1)
        except KeyError:
            log.info("%s: there is no %s in it", self.path, member)
            raise DiveError(f"{where} is not there") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
            reason = without_paths(str(error))  # zipfile's message names the member
            raise DiveError(f"{where} is damaged ({reason}); download the archive again") from error
        return decode_text(data, where)
