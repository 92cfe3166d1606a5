"""Placeholders for absent texts: "nan", "N/A", "-", "___", NaN; absent everywhere, and counted."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from data_trees import IU_PROJECTIONS, IU_ROWS, Mimic, Plus, iu_kaggle
from PIL import Image
from typer.testing import CliRunner

import dive
from dive.cli import app
from dive.data import Skipped, Study, open_studies, read_studies
from dive.data.absent import first_present, is_absent, is_placeholder
from dive.data.given import as_studies_of
from dive.errors import DiveError


class NAType:
    """As pandas' NA is: it equals nothing, and has no truth."""

    def __eq__(self, other: object) -> "NAType":  # type: ignore[override]
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None  # type: ignore[assignment]


NONE = [
    "nan", "NaN", "None", "N/A", "n/a", "null", "NULL", "<NA>", "-", ".", "___", " nan ", "#N/A",
    "--", "...", "\tNone.\n", "NA", "N.A.", "nil", "-nan", "1.#IND", "#N/A N/A", "\\N", "NaT",
    "(none)", "–", "…", "?", "XXXX.", "___, ___.", "'null'", "n / a", "Not available.",
    "xxxx", "Xxxx", "xxx", "xXx, XXXX",
    "nan nan", "None None", "nan\nnan", "NA/NA", "None. None.", "nan, nan", "nan | nan", "___ nan",
    "FINDINGS: nan", "FINDINGS: ___", "IMPRESSION: N/A", "Findings: nan\nImpression: nan",
    "FINDINGS:", "Findings: None. Impression: not available", "history=nan", "&nbsp;", "<br>",
    "<br/>", "<p></p>", "<P class='x'>&nbsp;</P>", "<p>nan</p>", "\\n", "\\r\\n", "nan\\nnan",
    "#NULL!", "#REF!", "#DIV/0!", "#VALUE!", "[REDACTED]", "No data available", "Not stated.",
    "unknown", "UNKNOWN", float("nan"), np.float32("nan"), NAType(),
]  # fmt: skip
TEXTS = [
    "No", "Normal.", "None seen.", "Nil acute.", "0", "x", "正常", "N", "NAD", "xx", "Clear",
    "XXXX effusion.",
    "No acute disease.", "None of the lines has moved.", "___ year old with cough", "-1",
    "See impression.", "FINDINGS: Normal.", "nan Clear.", "Findings: None seen.", "<p>Clear</p>",
    "Unknown device.", "Report: clear", "nan 3", "<Normal>", "Nil. Clear.", "Findings",
]  # fmt: skip


@pytest.mark.parametrize(
    "value", NONE, ids=lambda v: repr(v) if isinstance(v, (str, float)) else type(v).__name__
)
def test_what_is_absent(value: object) -> None:
    assert is_absent(value) and is_placeholder(value)
    assert first_present(value, None, "Cough.") == "Cough."


@pytest.mark.parametrize("value", [*TEXTS, 3, 0.5, ["nan"]])
def test_what_is_not(value: object) -> None:
    assert not is_absent(value) and not is_placeholder(value)


def test_nothing_stands_in_the_place_of_what_is_blank() -> None:
    for value in (None, "", " \n"):
        assert is_absent(value) and not is_placeholder(value)
    assert first_present(None, "nan") is None


def test_a_study_given_in_python(caplog: pytest.LogCaptureFixture) -> None:
    film = Image.new("L", (8, 8))
    studies = [
        Study("a", (film,), patient="nan", indication="N/A", findings="Clear.", impression="-"),
        Study("b", (film,), indication="Cough.", findings=float("nan")),  # type: ignore[arg-type]
    ]
    a, b = studies
    assert (a.patient, a.indication, a.findings, a.impression) == (None, None, "Clear.", None)
    with pytest.raises(DiveError, match=r"study 'a': 'impression' is absent \(its value is '-'"):
        a.report("impression")
    with pytest.raises(DiveError, match=r"study 'b': 'findings' is absent \(its value is nan"):
        b.report()
    with caplog.at_level(logging.WARNING):
        assert as_studies_of(studies, "studies", "findings") == studies
    assert "studies: 1 findings, 1 impression, 1 indication, 1 patient taken as absent" in (
        caplog.text
    )


def lines(folder: Path, *rows: dict) -> Path:
    Image.new("L", (8, 8)).save(folder / "a.png")
    path = folder / "studies.jsonl"
    path.write_text(
        "".join(json.dumps({"id": n, "images": ["a.png"]} | row) + "\n" for n, row in
                enumerate(rows))
    )  # fmt: skip
    return path


def test_json_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = lines(
        tmp_path,
        {"findings": "Clear.", "indication": "None", "patient": "nan", "split": "nan"},
        {"findings": "nan", "impression": "Normal."},
        {"findings": float("nan"), "patient": float("nan")},
    )
    with caplog.at_level(logging.WARNING):
        first, second, third = read_studies(path)
    assert (first.indication, first.patient, first.split) == (None, None, None)
    assert second.findings is third.findings is third.patient is None
    assert f"{path.name}: 2 findings, 1 indication, 2 patient taken as absent" in caplog.text
    with pytest.raises(
        DiveError, match=r":2: study '1': 'findings' is absent \(its value is 'nan'"
    ):
        read_studies(path, target="findings")
    skipped = Skipped()
    studies = open_studies(path, on_error="skip", skipped=skipped).read()
    assert [study.id for study in studies] == ["0"]
    assert [entry["id"] for entry in skipped] == ["1", "2"]
    assert studies.summary.placeholders == {"findings": 2, "indication": 1, "patient": 2}
    assert "  taken as absent (" in str(studies.summary)


def test_rows_of_a_dataset() -> None:
    film = Image.fromarray(np.eye(8, dtype=np.uint8) * 200)
    rows = [
        {"id": 1, "image": film, "findings": "Clear.", "indication": float("nan"), "patient": "-"},
        {"id": 2, "image": film, "findings": NAType(), "impression": "-"},
        {"id": float("nan"), "image": film, "findings": "Normal.", "indication": "___"},
        {"id": 4, "image": film, "findings": "N/A"},
    ]  # fmt: skip
    studies = open_studies(rows).read()
    assert [(s.id, s.findings, s.indication, s.patient) for s in studies] == [
        ("1", "Clear.", None, None),
        ("row-2", "Normal.", None, None),
    ]
    assert studies.summary.left_out == {"without a section findings": 2}
    assert studies.summary.placeholders == {
        "findings": 2, "impression": 1, "indication": 2, "patient": 1, "id": 1,
    }  # fmt: skip
    with pytest.raises(DiveError, match=r"row 0, column 'image': is a placeholder, want an image"):
        open_studies([{"image": float("nan"), "findings": "Clear."}]).read()


def test_r2gen(tmp_path: Path) -> None:
    items = [
        {"id": f"i{n}", "report": report, "image_path": ["a.png"], "subject_id": subject}
        for n, (report, subject) in enumerate(
            [("Clear.", 10000001), ("nan", 10000002), (float("nan"), 1), ("Normal.", float("nan"))]
        )
    ]
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "annotation.json").write_text(json.dumps({"train": items}))
    studies = open_studies(f"r2gen:{tmp_path}").read()
    assert [(s.findings, s.patient) for s in studies] == [
        ("Clear.", "p10000001"),
        ("Normal.", None),
    ]
    assert studies.summary.placeholders["findings"] == 2
    assert studies.summary.left_out == {"without a section findings": 2}


def test_mimic_cxr(tmp_path: Path) -> None:
    mimic = Mimic(tmp_path)
    text = " FINAL REPORT\n INDICATION:  ___\n \n HISTORY:  Fever.\n \n FINDINGS:  {}\n"
    mimic.report(10000001, 50000001).write_text(text.format("Lungs are clear."))
    mimic.report(11000002, 50000003).write_text(text.format("___."))
    mimic.metadata[2] = (*mimic.metadata[2][:4], "nan", *mimic.metadata[2][5:])
    mimic.labels = [(10000001, 50000001, "1.0", "nan", "N/A", *[""] * 11)]
    mimic.write()
    studies = open_studies(f"mimic-cxr:{tmp_path}", views="all").read()
    assert [(s.id, s.findings, s.indication) for s in studies] == [
        ("s50000001", "Lungs are clear.", "Fever."),
        ("s50000002", "Small left effusion.", "Cough."),
    ]
    assert studies[0].labels == {"Atelectasis": 1.0}
    assert studies[1].views == ("PA", "")
    assert studies.summary.placeholders == {"view": 1, "label": 2, "findings": 1}
    table = mimic.write_sectioned(
        [("s50000001", "nan", "Clear.", "", ""), ("s50000002", "Normal.", "None", "", "")]
    )
    studies = open_studies(f"mimic-cxr:{tmp_path}", sections=table, labels=None).read()
    assert [(s.findings, s.impression) for s in studies] == [("Clear.", None)]
    assert studies.summary.placeholders == {"view": 1, "impression": 1, "findings": 1}


def test_chexpert_plus(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plus = Plus(tmp_path)
    plus.rows[0] |= {"section_clinical_history": "nan", "section_history": "Fever."}
    plus.rows[0] |= {"deid_patient_id": "nan", "section_impression": "NaN"}
    plus.rows[1] |= {"section_findings": "N/A"}
    plus.write()
    plus.write_labels(
        "findings",
        {"path_to_image": "train/patient2/study1/view1_frontal.jpg", "Edema": float("nan"),
         "Fracture": 1.0, "Pneumonia": None},
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        studies = open_studies(f"chexpert-plus:{tmp_path}", split="train").read()
    (one,) = studies
    assert (one.patient, one.indication, one.impression) == ("patient2", "Fever.", None)
    assert one.labels == {"Fracture": 1.0}
    counts = {"patient": 1, "label": 1, "impression": 1, "findings": 1}
    assert studies.summary.placeholders == counts
    assert "1 findings, 1 impression, 1 label, 1 patient taken as absent" in caplog.text


def test_iu_xray(tmp_path: Path) -> None:
    uid, mesh, _, image, *_ = IU_ROWS[0]
    rows = [(uid, mesh, "nan", image, "None", "None.", "XXXX.", "Normal."), *IU_ROWS[1:]]
    root = iu_kaggle(tmp_path, rows, [(1, "1_IM-0001-4001.dcm.png", "nan"), *IU_PROJECTIONS[1:]])
    studies = open_studies(f"iu-xray:{root}", target=None, views="all").read()
    assert (studies[0].findings, studies[0].indication, studies[0].labels) == (None, None, {})
    assert set(studies[0].views) == {"", "LATERAL"}
    counts = {"view": 1, "label": 1, "findings": 1, "indication": 1}
    assert studies.summary.placeholders == counts


def test_evaluate(caplog: pytest.LogCaptureFixture) -> None:
    predictions = ["a b c", "nan", float("nan"), NAType(), "a b"]
    references = ["a b c", "a b c", "N/A", "a b c", float("nan")]
    with caplog.at_level(logging.WARNING):
        got = dive.evaluate(predictions, references, ["rougeL"], baseline=["-"] * 5)
    assert (got["reports"], got["scored"]) == (5, 3)
    assert (got["empty_predictions"], got["empty_references"]) == (2, 2)
    assert got["rougeL"] == pytest.approx(1 / 3)
    assert got["placeholders"] == {"predictions": 3, "references": 2, "baseline": 5}
    assert "predictions: 3 of 5 are empty" in caplog.text
    assert "references: 2 of 5 are empty" in caplog.text


def test_the_command_evaluate(tmp_path: Path) -> None:
    def write(name: str, *rows: dict) -> Path:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    truth = write("r.jsonl", {"id": 1, "findings": "Clear."}, {"id": 2, "findings": "NaN"},
                  {"id": 3, "findings": "Normal heart."})  # fmt: skip
    said = write("p.jsonl", {"id": 1, "report": "Clear."}, {"id": 2, "report": "Clear."},
                 {"id": 3, "report": float("nan")})  # fmt: skip
    files = ["evaluate", "--predictions", str(said), "--references", str(truth), "--json"]
    stopped = CliRunner().invoke(app, files)
    assert isinstance(stopped.exception, DiveError)
    assert "r.jsonl:2: study '2': 'findings' is absent (its value is 'NaN'" in str(
        stopped.exception
    )
    found = json.loads(CliRunner().invoke(app, [*files, "--allow-missing"]).stdout)
    assert (found["scored"], found["empty_references"], found["empty_predictions"]) == (2, 1, 1)
    assert found["rougeL"] == pytest.approx(0.5)
