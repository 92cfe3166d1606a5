"""Time and memory to read the metadata of a dataset of 200k studies.

    python benchmarks/bench_readers.py [--studies 200000] [--only mimic-cxr-csv ...]

Writes synthetic trees in the layout of each dataset to a temporary folder (without image files,
which are not looked up), reads each in its own process, and prints one JSON line per tree: seconds
to the first study and to the last, in wall-clock and in CPU time (more reliable on a busy machine),
peak resident memory, what was kept. Imports are included.
"""

import argparse
import csv
import gzip
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

LABELS = [
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum",
    "Fracture", "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other",
    "Pneumonia", "Pneumothorax", "Support Devices",
]  # fmt: skip
WORDS = (  # noqa: SIM905 (a list of names is easier to read as text)
    "the heart is of normal size there is no pleural effusion or pneumothorax lungs are clear "
    "a small opacity in the left lower lobe may be atelectasis bony thorax intact"
).split()
PLUS = (  # noqa: SIM905
    ",path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,"
    "report,section_narrative,section_clinical_history,section_history,section_comparison,"
    "section_technique,section_procedure_comments,section_findings,section_impression,"
    "section_end_of_impression,section_summary,section_accession_number,age,sex,race,ethnicity,"
    "interpreter_needed,insurance_type,recent_bmi,deceased,split"
).split(",")
METADATA = (  # noqa: SIM905
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,"
    "StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
    "PatientOrientationCodeSequence_CodeMeaning"
).split(",")


def text(draw: random.Random, words: int) -> str:
    chosen = draw.choices(WORDS, k=words)
    lines = [" ".join(chosen[at : at + 12]) for at in range(0, words, 12)]
    return " \n ".join(lines) + "."


def mimic_studies(count: int) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """(subject, study, [(dicom, view)]), 3 studies per patient and 5 images for 3 studies."""
    draw = random.Random(0)
    for number in range(count):
        images = []
        for view in ("PA", "LATERAL")[: 1 + (number % 3 > 0)]:
            digits = f"{draw.getrandbits(160):040x}"
            images.append(("-".join(digits[at : at + 8] for at in range(0, 40, 8)), view))
        yield str(10_000_000 + number // 3 * 31), str(50_000_000 + number * 41), images


def mimic(folder: Path, count: int, reports: str) -> str:
    draw = random.Random(1)
    (folder / "files" / "p10").mkdir(parents=True)
    with (
        gzip.open(folder / "mimic-cxr-2.0.0-metadata.csv.gz", "wt", newline="") as metadata,
        gzip.open(folder / "mimic-cxr-2.0.0-split.csv.gz", "wt", newline="") as split,
        gzip.open(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", "wt", newline="") as labels,
    ):
        tables = [csv.writer(file) for file in (metadata, split, labels)]
        tables[0].writerow(METADATA)
        tables[1].writerow(["dicom_id", "study_id", "subject_id", "split"])
        tables[2].writerow(["subject_id", "study_id", *LABELS])
        for number, (subject, study, images) in enumerate(mimic_studies(count)):
            group = "train" if number % 50 else "validate"
            for dicom, view in images:
                tables[0].writerow(
                    [dicom, subject, study, "CHEST (PA AND LAT)", view, 3056, 2544, 21800506,
                     "213014.531", "CHEST (PA AND LAT)", "postero-anterior", "Erect"]
                )  # fmt: skip
                tables[1].writerow([dicom, study, subject, group])
            tables[2].writerow(
                [subject, study, *(draw.choice(["", "", "", "1.0", "0.0", "-1.0"]) for _ in LABELS)]
            )
    if reports == "csv":
        with open(folder / "mimic_cxr_sectioned.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["study", "impression", "findings", "last_paragraph", "comparison"])
            for _, study, _ in mimic_studies(count):
                table.writerow([f"s{study}", text(draw, 20), text(draw, 60), "", "None."])
    else:
        archive = zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED)
        for subject, study, _ in mimic_studies(count):
            body = f"{'':32}FINAL REPORT\n INDICATION: {text(draw, 8)}\n \n FINDINGS: \n \n "
            body += f"{text(draw, 60)}\n \n IMPRESSION: \n \n {text(draw, 20)}\n"
            name = f"p{subject[:2]}/p{subject}/s{study}.txt"
            if reports == "zip":
                archive.writestr(f"files/{name}", body)
            else:
                path = folder / "files" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(body)
        archive.close()
        if reports != "zip":
            os.unlink(folder / "mimic-cxr-reports.zip")
    return f"mimic-cxr:{folder}"


def chexpert_plus(folder: Path, count: int) -> str:
    draw = random.Random(2)
    (folder / "chexbert_labels").mkdir()
    numbers = list(range(count))
    draw.shuffle(numbers)  # the lines of a study need not be adjacent
    with (
        open(folder / "df_chexpert_plus_240401.csv", "w", newline="") as file,
        open(folder / "chexbert_labels" / "impression_fixed.json", "w") as labels,
    ):
        table = csv.writer(file)
        table.writerow(PLUS)
        row = 0
        for view in (1, 2):
            for number in numbers[:: 1 if view == 1 else 5]:
                group = "train" if number % 900 else "valid"
                side = "Frontal" if view == 1 else "Lateral"
                image = f"{group}/patient{number // 3}/study{number % 3}/view{view}_{side.lower()}"
                words = random.Random(number)  # the lines of a study have the same texts
                findings, impression = text(words, 60), text(words, 30)
                cells = dict.fromkeys(PLUS, "")
                cells |= {"": str(row), "path_to_image": f"{image}.jpg", "split": group}
                cells |= {"path_to_dcm": f"{image}.dcm", "frontal_lateral": side, "ap_pa": "AP"}
                cells |= {"deid_patient_id": f"patient{number // 3}", "sex": "Male", "age": "60"}
                cells |= {"section_findings": findings, "section_impression": impression}
                cells |= {"section_narrative": text(words, 40), "section_summary": text(words, 8)}
                cells |= {"report": "\n".join((text(words, 60), findings, impression))}
                table.writerow(cells.values())
                values = {name: draw.choice([None, None, 1.0, 0.0, -1.0]) for name in LABELS}
                labels.write(json.dumps({"path_to_image": f"{image}.jpg", **values}) + "\n")
                row += 1
    return f"chexpert-plus:{folder}"


def r2gen(folder: Path, count: int) -> str:
    draw = random.Random(3)
    items = []
    for subject, study, images in mimic_studies(count):
        for dicom, _ in images:
            path = f"p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"
            items.append(
                {"id": dicom, "study_id": int(study), "subject_id": int(subject),
                 "report": text(draw, 60), "image_path": [path], "split": "train"}
            )  # fmt: skip
    (folder / "annotation.json").write_text(json.dumps({"train": items, "val": [], "test": []}))
    return f"r2gen:{folder / 'annotation.json'}"


TREES: dict[str, tuple[Callable[[Path, int], str], str]] = {
    "mimic-cxr-csv": (lambda folder, count: mimic(folder, count, "csv"), "findings"),
    "mimic-cxr-zip": (lambda folder, count: mimic(folder, count, "zip"), "findings"),
    "mimic-cxr-files": (lambda folder, count: mimic(folder, count, "files"), "findings"),
    "chexpert-plus": (chexpert_plus, "impression"),
    "r2gen": (r2gen, "findings"),
}


def measure(spec: str, target: str) -> dict:
    start = time.perf_counter()
    from dive.data import open_studies

    studies = open_studies(spec, target=target, check_files=False)
    next(iter(studies))
    first, first_cpu = time.perf_counter() - start, time.process_time()
    count = len(studies)
    total = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "studies": count,
        "images": studies.summary.images,
        "first_study_s": round(first, 2),
        "first_study_cpu_s": round(first_cpu, 2),
        "all_s": round(total, 2),
        "all_cpu_s": round(time.process_time(), 2),
        "peak_mib": round(peak),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--studies", type=int, default=200_000)
    options.add_argument("--only", nargs="*", choices=TREES, default=list(TREES))
    options.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
        return
    machine = {"python": platform.python_version(), "cores": os.cpu_count()}
    for name in given.only:
        make, target = TREES[name]
        with tempfile.TemporaryDirectory() as folder:
            spec = make(Path(folder), given.studies)
            command = [sys.executable, __file__, "--measure", spec, target]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(json.dumps({"tree": name, **json.loads(answer), **machine}), flush=True)


if __name__ == "__main__":
    main()
