"""`dive evaluate` on files: training seeds, patients, tables, and all of it as JSON."""

import csv
import json
import os
import re

import pytest
from command_line import call
from data_trees import r2gen_mimic
from typer.testing import CliRunner

import dive
from dive.cli import app
from dive.cli.references import references_of
from dive.errors import DiveError
from dive.files.lock import hold_file

REFERENCES = ["Large left effusion. Edema.", "No pleural effusion.", "Edema.", "Scoliosis."]
SEEDS = [
    ["Left effusion.", "Rib fracture.", "Edema.", "Scoliosis. Edema."],
    ["Edema.", "Effusion.", "Edema.", "Clear."],
    ["Large left effusion.", "Clear.", "No edema.", "Scoliosis."],
]
PATIENTS = ["a", "a", "b", 7]


def _write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _texts(path, texts, **more):
    return _write(path, [{"id": f"s{i}", "report": t, **more} for i, t in enumerate(texts)])


@pytest.fixture
def files(tmp_path):
    """The references, and three files of predictions."""
    truth = _write(
        tmp_path / "r.jsonl",
        [
            {"id": f"s{i}", "findings": text, "patient": patient}
            for i, (text, patient) in enumerate(zip(REFERENCES, PATIENTS, strict=True))
        ],
    )
    predictions = [
        _texts(tmp_path / f"p{n}.jsonl", texts, finish_reason="eos")
        for n, texts in enumerate(SEEDS)
    ]
    return truth, predictions


def _call(files, *more, predictions=None):
    truth, known = files
    names = [word for path in predictions or known for word in ("--predictions", path)]
    return call("evaluate", "--references", truth, *names, *more)


def _strict(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("baselines", [0, 1, 3])
def test_one_file_per_training_seed(files, baselines, tmp_path):
    others = [_texts(tmp_path / f"b{n}.jsonl", SEEDS[n]) for n in range(baselines)]
    more = [word for path in others for word in ("--baseline", path)]
    got = _strict(_call(files, "--bootstrap", 30, "--seed", 2, *more, "--json").stdout)
    wanted = dive.evaluate_seeds(
        SEEDS, REFERENCES, ["bleu", "rougeL", "findings"], bootstrap=30, seed=2, patients=PATIENTS,
        finish_reasons=[["eos"] * 4] * 3, baseline=SEEDS[:baselines] or None,
    )  # fmt: skip
    assert got["seeds"].pop("files") == [str(path) for path in files[1]]
    if baselines:
        assert got["baseline_seeds"].pop("files") == [str(path) for path in others]
    assert {key: got[key] for key in wanted} == wanted
    assert got["bleu4"] == got["seeds"]["scores"]["bleu4"]["mean"]


def test_json_has_all(files):
    got = _strict(_call(files, "--bootstrap", 20, "--json", predictions=files[1][:1]).stdout)
    plain = dive.evaluate(
        SEEDS[0], REFERENCES, ["bleu", "rougeL", "findings"], bootstrap=20, patients=PATIENTS,
        finish_reasons=["eos"] * 4,
    )  # fmt: skip
    assert {key: got[key] for key in plain} == plain
    assert got.keys() - plain.keys() == {
        "without_prediction", "without_reference", "ids_without_prediction",
        "ids_without_reference", "without_finish_reason", "target",
    }  # fmt: skip
    assert got["bootstrap"]["unit"] == "patient" and got["bootstrap"]["units"] == 3


def test_ids_without_a_partner_are_in_the_json(files, tmp_path):
    odd = _write(tmp_path / "odd.jsonl", [{"id": name, "report": "x"} for name in ("s1", "new")])
    got = _strict(_call(files, "--allow-missing", "--json", predictions=[odd]).stdout)
    assert got["ids_without_prediction"] == {str(odd): ["s0", "s2", "s3"]}
    assert got["ids_without_reference"] == {str(odd): ["new"]}
    assert got["without_prediction"] == {str(odd): 3}


def test_seeds_are_printed_with_what_they_mean(files):
    said = _call(files, "--bootstrap", 20).stdout
    assert all(f"seed {n + 1}: {path}" in said for n, path in enumerate(files[1]))
    for words in (
        "Values are means over 3 training seeds", "SD of seeds", "SD of patients",
        "interval with seeds", "20 resamples of 3 patients, each with all their reports",
    ):  # fmt: skip
        assert words in said


def test_classes_and_terciles_are_printed(files):
    lines = _call(files, predictions=files[1][:1]).stdout.splitlines()
    (effusion,) = [line.split() for line in lines if line.startswith("Pleural Effusion")]
    assert effusion == ["Pleural", "Effusion", "1", "1.000", "1.000", "1.000", "0.000"]
    assert not any(line.startswith("Lung Lesion") for line in lines)  # in no reference
    (common,) = [line.split() for line in lines if line.startswith("common (1 finding)")]
    assert common == ["common", "(1", "finding)", "2", "0.500", "0.500", "0.500", "0.500"]
    assert "stated by predictions alone, once: Fracture" in lines
    said = _call(files, "--metrics", "bleu", predictions=files[1][:1]).stdout
    assert "tercile" not in said and "class" not in said


def test_the_unit_of_the_bootstrap(files, tmp_path):
    truth, predictions = files
    said = _call(files, "--bootstrap", 9, "--bootstrap-unit", "report").stdout
    assert "9 resamples of 4 reports." in said
    with pytest.raises(DiveError, match="--bootstrap-unit has no use without --bootstrap"):
        _call(files, "--bootstrap-unit", "report")
    with pytest.raises(DiveError, match="bootstrap_unit is 'study', want one of report, patient"):
        _call(files, "--bootstrap", 9, "--bootstrap-unit", "study")
    records = [json.loads(line) for line in truth.read_text().splitlines()]
    del records[1]["patient"]
    half = _write(tmp_path / "half.jsonl", records), predictions
    said = _call(half, "--bootstrap", 9).stdout
    assert "1 of 4 references name no patient, so reports are drawn and not patients" in said
    with pytest.raises(DiveError, match="of 4 scored references 1 have no patient"):
        _call(half, "--bootstrap", 9, "--bootstrap-unit", "patient")
    for record in records:
        record.pop("patient", None)
    said = _call((_write(tmp_path / "none.jsonl", records), predictions), "--bootstrap", 9).stdout
    assert "9 resamples of 4 reports." in said and "name no patient" not in said


@pytest.mark.parametrize(
    ("patient", "known"),
    [("p1", "p1"), (17, "17"), (None, None), ("", None), ("nan", None), (float("nan"), None)],
)
def test_patients_of_references(patient, known, tmp_path):
    path = _write(tmp_path / "r.jsonl", [{"id": "a", "findings": "Clear.", "patient": patient}])
    (found,) = references_of(str(path), "findings", {}, False).values()
    assert (found.report, found.patient, found.study.id) == ("Clear.", known, "a")


@pytest.mark.parametrize("patient", [True, 1.5, ["zyx"]])
def test_patients_of_another_kind(patient, tmp_path):
    path = _write(tmp_path / "r.jsonl", [{"id": "a", "findings": "Clear.", "patient": patient}])
    with pytest.raises(DiveError, match=r'r.jsonl:1: "patient" is a \w+, want a text$'):
        references_of(str(path), "findings", {}, False)


@pytest.mark.parametrize("text", ["", "  ", "nan", "N/A"])
def test_a_reference_that_is_given_and_empty_is_missing(text, tmp_path):
    path = _write(tmp_path / "r.jsonl", [{"id": "a", "findings": text}])
    (found,) = references_of(str(path), "findings", {}, True).values()
    assert found.report == ""
    with pytest.raises(DiveError, match="'findings' is (absent|empty)"):
        references_of(str(path), "findings", {}, False)


def test_a_patient_without_a_name_excuses_no_missing_report(tmp_path):
    path = _write(tmp_path / "r.jsonl", [{"id": "a", "impression": "Clear.", "patient": "-"}])
    with pytest.raises(DiveError, match="'findings' is absent"):
        references_of(str(path), "findings", {}, True)


def test_patients_of_a_dataset(tmp_path):
    found = references_of(f"r2gen:{r2gen_mimic(tmp_path)}", "findings", {}, False)
    assert found and all(one.patient and one.report for one in found.values())


def test_tables(files, tmp_path):
    out = [tmp_path / "t" / "scores.tex", tmp_path / "t" / "scores.CSV"]
    more = [word for path in out for word in ("--table", path)]
    said = _call(files, *more, "--bootstrap", 9, "--baseline", files[1][0]).stdout
    assert all(f"the scores are in {path}" in said for path in out)
    tex, text = (path.read_text(encoding="utf-8") for path in out)
    assert "p0.jsonl, p1.jsonl, p2.jsonl" in tex and r"\toprule" in tex
    lines = list(csv.DictReader(text.splitlines()))
    assert lines[0]["predictions"] == "p0.jsonl; p1.jsonl; p2.jsonl"
    assert lines[0]["baseline_predictions"] == "p0.jsonl"
    assert {line["group"] for line in lines} == {"all", "class", "tercile"}
    got = _strict(_call(files, *more, "--json").stdout)
    (bleu,) = [one for one in csv.DictReader(out[1].open()) if one["score"] == "bleu1"]
    assert float(bleu["value"]) == got["bleu1"]
    assert sorted(one.name for one in out[0].parent.iterdir()) == ["scores.CSV", "scores.tex"]


def test_tables_replace_nothing_that_is_read(files, tmp_path):
    truth, predictions = files
    link = tmp_path / "link.csv"
    link.symlink_to(predictions[2])
    read = tmp_path / "read.csv"
    read.write_text("{}")
    before = {path: path.read_bytes() for path in (truth, *predictions, read)}
    for out, more, message in (
        (link, (), "--table .*link.csv: is one of the files to read; name another"),
        (read, ("--radgraph-annotations", read), "--table .*read.csv: is one of the files to read"),
        (tmp_path, (), "--table is .*, want a name that ends in .tex or .csv"),
        (tmp_path / "a.xlsx", (), "--table is .*a.xlsx, want a name that ends in .tex or .csv"),
        (tmp_path / "a.csv", ("--table", tmp_path / "." / "a.csv"), "is written already by this"),
    ):
        with pytest.raises(DiveError, match=message):
            _call(files, "--table", out, *more)
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "a.csv").exists()
    os.mkfifo(tmp_path / "pipe.tex")
    with pytest.raises(DiveError, match="pipe.tex is no regular file, want the name of a file"):
        _call(files, "--table", tmp_path / "pipe.tex")
    out = tmp_path / "held.csv"
    with hold_file(out), pytest.raises(DiveError, match="is being written by"):
        _call(files, "--table", out)
    with pytest.raises(DiveError, match="--table .*r.csv: exists among the files of the dataset"):
        (tmp_path / "iu").mkdir()
        (tmp_path / "iu" / "r.csv").write_text("kept")
        _call((f"iu-xray:{tmp_path / 'iu'}", predictions), "--table", tmp_path / "iu" / "r.csv")


def test_files_that_do_not_go_together(files, tmp_path):
    _truth, predictions = files
    first, second, third = predictions
    for more, given, message in (
        (("--predictions", first), predictions, "--predictions is .*p0.jsonl twice, want another"),
        (
            ("--predictions", first.parent / "." / ".." / first.parent.name / first.name),
            predictions,
            "--predictions is .*p0.jsonl twice, want another",
        ),
        (("--baseline", first, "--baseline", second), predictions, "given 2 times and --predic"),
        (("--baseline", first, "--baseline", second), [third], "one baseline or as many"),
        (("--per-report", tmp_path / "x"), predictions, "--per-report is of one file of predicti"),
    ):
        with pytest.raises(DiveError, match=message):
            _call(files, *more, predictions=given)
    short = _texts(tmp_path / "short.jsonl", SEEDS[0][:3])
    with pytest.raises(DiveError, match="short.jsonl has no prediction under 1 id: s3"):
        _call(files, predictions=[first, short])
    got = _strict(_call(files, "--allow-missing", "--json", predictions=[first, short]).stdout)
    assert got["scored"] == 3 and got["ids_without_prediction"][str(short)] == ["s3"]
    assert "termination_rate" not in got and got["without_finish_reason"] == 3
    said = _call(files, "--allow-missing", predictions=[first, short]).stdout
    assert f"no termination_rate: 3 of 3 predictions have no finish_reason ({short})" in said
    assert not (tmp_path / "x").exists()


def test_a_missing_option_is_said():
    done = CliRunner().invoke(app, ["evaluate", "--references", "r.jsonl"])
    assert done.exit_code == 2 and "--predictions" in done.output


def test_no_patient_and_no_text_is_in_what_is_written(files, tmp_path):
    _truth, predictions = files
    records = [
        {"id": f"s{i}", "findings": f"{text} Zyxtruth.", "patient": f"zyxpatient{i // 2}"}
        for i, text in enumerate(REFERENCES)
    ]
    truth = _write(tmp_path / "private.jsonl", records)
    said = [
        _texts(tmp_path / f"said{n}.jsonl", [f"{t} Zyxsaid." for t in SEEDS[n]]) for n in (0, 1)
    ]
    out = [tmp_path / "t.tex", tmp_path / "t.csv"]
    more = ["--table", out[0], "--table", out[1], "--bootstrap", 9, "--baseline", predictions[0]]
    shown = _call((truth, said), *more).stdout + _call((truth, said), *more, "--json").stdout
    assert "2 patients" in shown
    assert not re.search("zyx", shown + "".join(path.read_text() for path in out), re.IGNORECASE)


@pytest.mark.parametrize("option", ["--per-report", "--table", "--export"])
def test_no_film_of_the_references_is_replaced(option, tmp_path):
    name = {"--table": "film.csv"}.get(option, "film.png")
    film = tmp_path / name
    film.write_bytes(b"a film")
    record = {"id": "a", "findings": "Clear lungs.", "images": [name]}
    truth = _write(tmp_path / "r.jsonl", [record])
    reports = _write(tmp_path / "p.jsonl", [{"id": "a", "report": "Clear lungs."}])
    given = f"rexrank:{film}" if option == "--export" else film
    with pytest.raises(DiveError, match=f"{option} .*{name}: is one of the files to read"):
        call("evaluate", "--predictions", reports, "--references", truth, "--metrics", "bleu",
             option, given)  # fmt: skip
    assert film.read_bytes() == b"a film"
    # images that are no paths are none of this command's business
    truth = _write(tmp_path / "r.jsonl", [record | {"images": [5]}])
    call("evaluate", "--predictions", reports, "--references", truth, "--metrics", "bleu")
