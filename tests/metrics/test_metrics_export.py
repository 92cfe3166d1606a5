"""Exports: what ReXrank's and RadEval's readers make of the files, and `dive evaluate --export`."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import call, rows

from dive.errors import DiveError
from dive.metrics.export import write_export

IDS = ["s1", "07", "p/3 \N{GREEK SMALL LETTER ALPHA}"]
REFERENCES = ["No effusion.\nHeart normal.", "Großer Erguss \ud83e", 'Small "left" effusion']
PREDICTIONS = ["Findings:No effusion.", "", "None"]


def _split_json(file: Path) -> tuple[list[list[Any]], list[list[Any]]]:
    """As split_json of ReXrank's example_files/evaluation_script.md (8152f99) reads a file.

    Without pandas: its `notna` is false of None and NaN alone, and of neither here.
    """
    with open(file, encoding="ascii") as handle:
        entries = json.load(handle)
    predicted, true = [], []
    for study_id, entry in entries.items():
        findings, impression = entry["section_findings"], entry["section_impression"]
        predicted.append([study_id, entry["model_prediction"]])
        true.append([study_id, f"Findings: {findings} Impression: {impression}"])
    return true, predicted


def _findings_csv(file: Path) -> list[dict[str, Any]]:
    """The references of json_to_csv.py of ReXrank-metric, --splits findings."""
    entries = json.loads(file.read_text(encoding="ascii"))
    return [
        {
            "study_id": index,
            "case_id": name,
            "report": f"Findings: {entry['section_findings']}" if entry["section_findings"] else "",
            "prediction": entry.get("model_prediction", ""),
        }
        for index, (name, entry) in enumerate(entries.items())
    ]


def test_rexrank_reads_findings(tmp_path: Path) -> None:
    file = tmp_path / "predictions.json"
    assert write_export("rexrank", file, IDS, REFERENCES, PREDICTIONS) == 0
    true, predicted = _split_json(file)
    assert predicted == [list(pair) for pair in zip(IDS, PREDICTIONS, strict=True)]
    assert [name for name, _ in true] == IDS
    assert true[0][1] == "Findings: No effusion.\nHeart normal. Impression: "
    assert _findings_csv(file)[2] == {
        "study_id": 2,
        "case_id": IDS[2],
        "report": 'Findings: Small "left" effusion',
        "prediction": "None",
    }


def test_rexrank_reads_both_sections(tmp_path: Path) -> None:
    file = tmp_path / "predictions.json"
    both = ["Findings: No effusion. Impression: Clear.", "Findings: A. Impression: B Impression: C"]
    write_export("rexrank", file, IDS[:2], both, PREDICTIONS[:2], target="both")
    assert [text for _, text in _split_json(file)[0]] == both
    entry = json.loads(file.read_text())["s1"]
    assert entry["section_findings"] == "No effusion." and entry["section_impression"] == "Clear."
    write_export("rexrank", file, IDS[:1], ["Clear."], ["Clear."], target="impression")
    assert json.loads(file.read_text())["s1"]["section_impression"] == "Clear."
    with pytest.raises(DiveError, match=r"the reference of 's1' has not both sections, want"):
        write_export("rexrank", file, IDS[:1], ["No effusion."], ["x"], target="both")


def test_radeval_reads_lines(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    assert write_export("radeval", file, IDS, REFERENCES, PREDICTIONS) == 0
    # the lines of docs/file_formats.md of RadEval (e0a3909)
    with open(file, encoding="ascii") as f:
        found = [json.loads(line) for line in f]
    assert [row["ref"] for row in found] == REFERENCES
    assert [row["hyp"] for row in found] == PREDICTIONS
    assert [row["id"] for row in found] == IDS


@pytest.mark.parametrize("format", ["rexrank", "radeval"])
def test_empty_references_are_left_out_and_counted(tmp_path: Path, format: str) -> None:
    file = tmp_path / "out"
    references = ["No effusion.", " ", "nan"]
    assert write_export(format, file, IDS, references, ["a", "b", float("nan")]) == 2
    text = file.read_text()
    assert "s1" in text and '"07"' not in text
    assert write_export(format, file, ["7"], ["No effusion."], [float("nan")]) == 0
    assert json.loads(file.read_text()) in (
        {"id": "7", "ref": "No effusion.", "hyp": ""},
        {
            "7": {
                "section_findings": "No effusion.",
                "section_impression": "",
                "model_prediction": "",
            }
        },
    )


def test_bad_input(tmp_path: Path) -> None:
    file = tmp_path / "out"
    with pytest.raises(DiveError, match="format is 'csv', want one of rexrank, radeval"):
        write_export("csv", file, IDS, REFERENCES, PREDICTIONS)
    with pytest.raises(DiveError, match="target is 'report', want one of"):
        write_export("radeval", file, IDS, REFERENCES, PREDICTIONS, target="report")
    with pytest.raises(DiveError, match="3 ids, 2 references and 3 predictions: want one of each"):
        write_export("radeval", file, IDS, REFERENCES[:2], PREDICTIONS)
    with pytest.raises(DiveError, match="id '1' comes twice"):
        write_export("radeval", file, ["1", 1], ["a", "b"], ["c", "d"])  # type: ignore[list-item]
    with pytest.raises(DiveError, match="is a folder, want the name of a file"):
        write_export("radeval", tmp_path, IDS, REFERENCES, PREDICTIONS)
    assert not file.exists()


# ---- the command


@pytest.fixture
def files(tmp_path: Path) -> list[Any]:
    predictions, references = tmp_path / "p.jsonl", tmp_path / "r.jsonl"
    predictions.write_text(
        '{"id": "a", "report": "No effusion."}\n{"id": 7, "report": "Small effusion."}\n'
    )
    references.write_text(
        '{"id": "a", "findings": "No effusion."}\n{"id": "7", "findings": "Large effusion."}\n'
    )
    return ["evaluate", "--predictions", predictions, "--references", references]


def test_evaluate_writes_both(files: list[Any], tmp_path: Path) -> None:
    rexrank, radeval = tmp_path / "out" / "p.json", tmp_path / "pairs.jsonl"
    exports = ["--export", f"rexrank:{rexrank}", "--export", f"radeval:{radeval}"]
    said = call(*files, *exports, "--metrics", "sentence_bleu").stdout
    assert "sentence_bleu2" in said and "for rexrank: 2 reports in" in " ".join(said.split())
    true, predicted = _split_json(rexrank)
    assert true[1] == ["7", "Findings: Large effusion. Impression: "]
    assert predicted == [["a", "No effusion."], ["7", "Small effusion."]]
    assert rows(radeval)[1] == {"id": "7", "ref": "Large effusion.", "hyp": "Small effusion."}
    found = json.loads(call(*files, *exports, "--json").stdout)
    assert found["left_out_of_exports"] == {str(rexrank): 0, str(radeval): 0}


def test_evaluate_says_what_is_left_out(files: list[Any], tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(
        '{"id": "a", "findings": "No effusion."}\n{"id": "7", "findings": "nan"}\n'
    )
    export = ["--export", f"radeval:{tmp_path / 'pairs.jsonl'}", "--allow-missing"]
    said = " ".join(call(*files, *export).stdout.split())
    assert "for radeval: 1 report (1 without a reference left out) in" in said
    assert [row["id"] for row in rows(tmp_path / "pairs.jsonl")] == ["a"]


@pytest.mark.parametrize("value", ["rexrank", "csv:out", "radeval:", "out.json"])
def test_exports_that_are_none(files: list[Any], value: str) -> None:
    with pytest.raises(DiveError, match="want FORMAT:FILE with one of rexrank, radeval"):
        call(*files, "--export", value)


def test_exports_of_the_home_folder(
    files: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves the ~ behind a colon as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    call(*files, "--export", "radeval:~/pairs.jsonl")
    assert (tmp_path / "pairs.jsonl").is_file()


def test_exports_replace_no_input_and_no_other_output(files: list[Any], tmp_path: Path) -> None:
    before = (tmp_path / "r.jsonl").read_text()
    for name in "p.jsonl", "r.jsonl":
        with pytest.raises(DiveError, match="--export"):
            call(*files, "--export", f"radeval:{tmp_path / name}")
    assert (tmp_path / "r.jsonl").read_text() == before
    out = tmp_path / "out"
    with pytest.raises(DiveError, match="is written already by this command"):
        call(*files, "--export", f"radeval:{out}", "--export", f"rexrank:{out}")
    with pytest.raises(DiveError, match="is written already by this command"):
        call(*files, "--export", f"radeval:{out}", "--per-report", out)
    (tmp_path / "q.jsonl").write_bytes((tmp_path / "p.jsonl").read_bytes())
    with pytest.raises(DiveError, match="--export is of one file of predictions, and 2 are given"):
        call(*files, "--export", f"radeval:{out}", "--predictions", tmp_path / "q.jsonl")
    assert not out.exists()


def test_options_of_models(files: list[Any], tmp_path: Path) -> None:
    """Each reaches its model, whose absence is one error that names it."""
    for metric, option, named in (
        (
            "bertscore",
            ["--bertscore-model", tmp_path / "roberta"],
            "BERTScore: no folder .*roberta",
        ),
        ("ratescore", ["--ratescore-python", tmp_path / "py"], "RaTEScore: cannot run .*/py: No"),
        ("green", ["--green-python", tmp_path / "py"], "GREEN: cannot run .*/py: No such file"),
        (
            "semb",
            ["--chexbert-tokenizer", tmp_path / "bert"],
            "CheXbert: no tokenizer folder .*/be",
        ),
        ("radcliq", ["--radgraph-python", tmp_path / "py"], "RadGraph: cannot run .*/py: No such"),
        (
            "semb",
            ["--metrics-device", "tpu"],
            "--metrics-device is 'tpu', want cpu, cuda or cuda:N",
        ),
        ("semb", ["--metrics-device", "cuda:64"], "is 'cuda:64', want one of the .* GPUs that"),
    ):
        with pytest.raises(DiveError, match=named):
            call(*files, "--metrics", metric, *option)
