"""Builders of small datasets in exactly the layout of the real ones; every report is made up."""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dive.data.reading_summary import ReadingSummary

CHEXPERT_LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum",
    "Fracture", "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other",
    "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
METADATA = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition",
    "Rows", "Columns", "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
PLUS = (
    "", "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id",
    "patient_report_date_order", "report", "section_narrative", "section_clinical_history",
    "section_history", "section_comparison", "section_technique", "section_procedure_comments",
    "section_findings", "section_impression", "section_end_of_impression", "section_summary",
    "section_accession_number", "age", "sex", "race", "ethnicity", "interpreter_needed",
    "insurance_type", "recent_bmi", "deceased", "split",
)  # fmt: skip

Rows = Iterable[Sequence[object]]


def write_csv(path: Path, header: Sequence[str], rows: Rows, newline: str = "\n") -> Path:
    """A table; gzipped where the name ends in .gz."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=newline)
    writer.writerow(header)
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def film(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # By whatever name: what is in the file matters where it is decoded, and nowhere else.
    Image.new("L", (8, 6), value).save(path, "JPEG" if path.suffix == ".jpg" else "PNG")
    return path


# MIMIC-CXR


def dicom_id(number: int) -> str:
    return "-".join([f"{number:08x}"] * 5)


def mimic_report(findings: str | None, impression: str | None, indication: str = "Cough.") -> str:
    """A report as the archive has them: one leading space, blank lines that hold one space."""
    text = (
        f"{'':33}FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  {indication}\n"
    )
    text += " \n COMPARISON:  ___.\n \n"
    if findings is not None:
        text += f" FINDINGS: \n \n {findings}\n \n"
    if impression is not None:
        text += f" IMPRESSION: \n \n {impression}\n"
    return text


class Mimic:
    """MIMIC-CXR-JPG with reports beside it:

    | study    | patient  | split    | images                        | text                        |
    | 50000001 | 10000001 | train    | 1 PA, 2 LATERAL               | findings, impression        |
    | 50000002 | 10000001 | train    | 4 AP, 3 PA (in this order)    | findings, Windows line ends |
    | 50000003 | 11000002 | validate | 5 LL                          | findings                    |
    | 50000004 | 11000002 | test     | 6 AP                          | impression only             |
    | 50000005 | 12000003 | train    | 7 AP                          | last paragraph only         |
    """

    STUDIES = (
        (50000001, 10000001, "train", ((1, "PA"), (2, "LATERAL"))),
        (50000002, 10000001, "train", ((4, "AP"), (3, "PA"))),
        (50000003, 11000002, "validate", ((5, "LL"),)),
        (50000004, 11000002, "test", ((6, "AP"),)),
        (50000005, 12000003, "train", ((7, "AP"),)),
    )
    TEXTS = {  # noqa: RUF012
        50000001: mimic_report(
            "The heart is normal in size. Compared to ___,\n the lungs are clearer.", "Normal."
        ),
        50000002: mimic_report("Small left effusion.", None).replace("\n", "\r\n"),
        50000003: mimic_report("Lungs are clear.", "No acute process."),
        50000004: mimic_report(None, "No pneumonia."),
        50000005: f"{'':33}FINAL REPORT\n CLINICAL HISTORY:  Fever.\n \n Lungs are clear.\n",
    }

    def __init__(self, root: Path, suffix: str = ".csv.gz") -> None:
        self.root, self.suffix = root, suffix
        self.metadata = [
            (
                dicom_id(image),
                subject,
                study,
                "CHEST",
                view,
                3056,
                2544,
                21800506,
                2130.5,
                "",
                "",
                "",
            )
            for study, subject, _, images in self.STUDIES
            for image, view in images
        ]
        self.split = [
            (dicom_id(image), study, subject, split)
            for study, subject, split, images in self.STUDIES
            for image, _ in images
        ]
        self.labels = [(10000001, 50000001, "1.0", "-1.0", "0.0", *[""] * 11)]
        for study, subject, _, images in self.STUDIES:
            for image, _ in images:
                film(self.image(subject, study, image))
            path = self.report(subject, study)
            path.write_bytes(self.TEXTS[study].encode())
        self.write()

    def folder(self, subject: int) -> Path:
        return self.root / "files" / f"p{str(subject)[:2]}" / f"p{subject}"

    def image(self, subject: int, study: int, image: int, suffix: str = ".jpg") -> Path:
        return self.folder(subject) / f"s{study}" / f"{dicom_id(image)}{suffix}"

    def report(self, subject: int, study: int) -> Path:
        return self.folder(subject) / f"s{study}.txt"

    def table(self, name: str) -> Path:
        return self.root / f"mimic-cxr-2.0.0-{name}{self.suffix}"

    def write(self, newline: str = "\n") -> "Mimic":
        """The tables as they now are."""
        write_csv(self.table("metadata"), METADATA, self.metadata, newline)
        header = ("dicom_id", "study_id", "subject_id", "split")
        write_csv(self.table("split"), header, self.split, newline)
        header = ("subject_id", "study_id", *CHEXPERT_LABELS)
        write_csv(self.table("chexpert"), header, self.labels, newline)
        return self

    def write_sectioned(self, rows: Rows) -> Path:
        header = ("study", "impression", "findings", "last_paragraph", "comparison")
        return write_csv(self.root / "mimic_cxr_sectioned.csv", header, rows)

    def zip_reports(self, path: Path) -> Path:
        """mimic-cxr-reports.zip in place of the report files."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for text in sorted(self.root.glob("files/*/*/*.txt")):
                archive.write(text, text.relative_to(self.root).as_posix())
                text.unlink()
        return path


# CheXpert Plus


def plus_row(number: int, image: str, **cells: str) -> dict[str, str]:
    split, patient, _, name = image.split("/")
    row = dict.fromkeys(PLUS, "")
    row |= {"": str(number), "path_to_image": image, "split": split, "deid_patient_id": patient}
    row |= {"frontal_lateral": "Lateral" if "lateral" in name else "Frontal"}
    return row | cells


class Plus:
    """CheXpert Plus; rows are images and not in order of their studies:

    | image                                     | view      | text                     |
    | train/patient2/study1/view1_frontal.jpg   | AP        | findings, impression     |
    | train/patient10/study1/view1_frontal.jpg  | "frontal" | impression               |
    | train/patient2/study1/view2_lateral.jpg   |           | as the first row         |
    | valid/patient3/study2/view1_frontal.jpg   | PA        | findings, impression     |
    """

    def __init__(self, root: Path, images: str = "PNG", suffix: str = ".png") -> None:
        self.root = root
        both = {
            "section_findings": "Small left\npleural effusion. Heart normal.",
            "section_impression": "Effusion.",
            "section_clinical_history": "Dyspnea.",
        }
        self.rows = [
            plus_row(0, "train/patient2/study1/view1_frontal.jpg", ap_pa="AP", **both),
            plus_row(
                1,
                "train/patient10/study1/view1_frontal.jpg",
                frontal_lateral="frontal",
                section_impression="No acute disease.",
            ),
            plus_row(2, "train/patient2/study1/view2_lateral.jpg", **both),
            plus_row(
                3,
                "valid/patient3/study2/view1_frontal.jpg",
                ap_pa="pa",
                section_findings="Clear lungs.",
                section_impression="Normal chest.",
            ),
        ]
        for row in self.rows:
            film(root / images / row["path_to_image"].replace(".jpg", suffix))
        self.write()

    @property
    def table(self) -> Path:
        return self.root / "df_chexpert_plus_240401.csv"

    def write(self) -> "Plus":
        write_csv(self.table, PLUS, [list(row.values()) for row in self.rows])
        return self

    def write_labels(self, name: str, *lines: dict) -> Path:
        path = self.root / "chexbert_labels" / f"{name}_fixed.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path


# IU X-Ray

IU_REPORTS = (
    "uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression",
)  # fmt: skip
_IU_NORMAL = ("normal", "normal", "Xray Chest PA and Lateral")
_IU_HEART = ("Cardiomegaly/mild", "Cardiomegaly;Opacity", "Xray Chest PA")
IU_ROWS = (
    (1, *_IU_NORMAL, "Cough", "None.", "Clear lungs. XXXX normal.", "Normal."),
    (2, *_IU_HEART, "XXXX-year-old", "", "Big heart.", "Big heart."),
    (10, *_IU_NORMAL, "", "", "", "No acute disease."),
)
IU_PROJECTIONS = (
    (1, "1_IM-0001-4001.dcm.png", "Frontal"),
    (1, "1_IM-0001-3001.dcm.png", "Lateral"),
    (2, "2_IM-0652-1001.dcm.png", "Frontal"),
    (10, "10_IM-0002-1001.dcm.png", "Frontal"),
)  # fmt: skip


def iu_kaggle(root: Path, reports: Rows = IU_ROWS, projections: Rows = IU_PROJECTIONS) -> Path:
    write_csv(root / "indiana_reports.csv", IU_REPORTS, reports)
    write_csv(root / "indiana_projections.csv", ("uid", "filename", "projection"), projections)
    for _, name, _ in IU_PROJECTIONS:
        film(root / "images" / "images_normalized" / name)
    return root


def iu_xml(root: Path) -> Path:
    for uid, mesh, _, _, indication, comparison, findings, impression in IU_ROWS:
        names = [n.removesuffix(".dcm.png") for u, n, _ in IU_PROJECTIONS if u == uid]
        parts = zip(
            ("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION"),
            (comparison, indication, findings, impression),
            strict=True,
        )
        abstract = "".join(f'<AbstractText Label="{a}">{b}</AbstractText>' for a, b in parts)
        images = "".join(
            f'<parentImage id="CXR{uid}_{name}"><caption>Xray</caption></parentImage>'
            for name in names
        )
        path = root / "ecgen-radiology" / f"{uid}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{uid}"/>'
            f"<MedlineCitation><Article><Abstract>{abstract}</Abstract></Article></MedlineCitation>"
            f"<MeSH><major>{mesh}</major></MeSH>{images}</eCitation>"
        )
        for name in names:
            film(root / "NLMCXR_png" / f"CXR{uid}_{name}.png")
    return root


# R2Gen


def r2gen_iu(root: Path) -> Path:
    items = {
        "train": [
            {
                "id": "CXR2384_IM-0942",
                "report": "The heart size is normal.",
                "image_path": ["CXR2384_IM-0942/0.png", "CXR2384_IM-0942/1.png"],
                "split": "train",
            }
        ],
        "val": [],
        "test": [
            {
                "id": "CXR9_IM-1",
                "report": "Lungs are clear .",
                "image_path": ["CXR9_IM-1/0.png", "CXR9_IM-1/1.png"],
                "split": "test",
            }
        ],
    }
    return _r2gen(root, items)


def r2gen_mimic(root: Path) -> Path:
    items: dict[str, list] = {"train": [], "val": [], "test": []}
    for number, split in ((1, "train"), (2, "train"), (3, "val")):
        folder = f"p10/p10000001/s5000000{number // 3}"
        items[split].append(
            {
                "id": dicom_id(number),
                "study_id": 50000000 + number // 3,
                "subject_id": 10000001,
                "report": f"Report of image {number}.",
                "image_path": [f"{folder}/{dicom_id(number)}.jpg"],
                "split": split,
            }
        )
    return _r2gen(root, items)


def _r2gen(root: Path, items: dict) -> Path:
    for group in items.values():
        for item in group:
            for path in item["image_path"]:
                film(root / "images" / path)
    path = root / "annotation.json"
    path.write_text(json.dumps(items))
    return path


# DICOM


def write_dicom(
    path: Path, pixels: np.ndarray, interpretation: str = "MONOCHROME2", **elements: object
) -> Path:
    """A DICOM file of integer pixels, [H, W] or [H, W, 3]; needs pydicom."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header: Dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.Rows, header.Columns = pixels.shape[:2]
    header.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        header.PlanarConfiguration = 0
    header.PhotometricInterpretation = interpretation
    header.BitsAllocated = header.BitsStored = 8 * pixels.dtype.itemsize
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(header, name, value)
    if "HighBit" not in elements:
        header.HighBit = header.BitsStored - 1
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def balanced(report: ReadingSummary) -> bool:
    """Nothing went missing between what was seen and what was kept."""
    studies = report.kept + sum(report.left_out.values()) + report.failed
    images = report.kept_images + sum(report.images_left_out.values())
    return report.complete and (studies, images) == (report.studies, report.images)
