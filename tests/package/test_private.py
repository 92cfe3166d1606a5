"""Reports and patients are the hospital's: nothing of them is said or kept where it need not be.

Every text, patient and path of the studies here holds a word of its own, which is then looked for
in all that was printed, logged, warned of and written.
"""

import json
import logging
import re
import sys
import warnings
from pathlib import Path

import pytest
from tiny import draw_film

import dive
from dive import cli
from dive.data import Skipped, Study, open_studies, read_studies
from dive.data.images.load import LazyImage
from dive.errors import DiveError
from dive.errors.private import public_name, public_reason, without_paths, without_texts
from dive.radgraph import RadGraphFile
from dive.training.fingerprint import settings_fingerprint

FINDINGS, IMPRESSION, INDICATION = "zyxfindings", "zyximpression", "zyxindication"
PATIENT, IMAGE, FOLDER, SOURCE = "zyxpatient", "zyximage", "zyxfolder", "zyxsource"
CANARY = re.compile(r"zyx\w*", re.IGNORECASE)
# whose purpose is the text: what the model wrote, with the paths as they were given
HOLDS_REPORTS = {"reports.jsonl", "reports.jsonl.partial"}


@pytest.fixture
def source(tmp_path):
    """A studies file whose every field holds a canary; study s5's image is broken behind its
    header, and s1 has the patient of s0."""
    folder = tmp_path / f"{SOURCE}-mimic"
    images = folder / f"{FOLDER}-p10000032"
    images.mkdir(parents=True)
    rows = []
    for number in range(6):
        path = images / f"{IMAGE}{number}.png"
        draw_film(number).save(path)
        rows.append(
            {
                "id": f"s{number}",
                "images": [str(path.relative_to(folder))],
                "patient": f"{PATIENT}-{number // 2}",
                "indication": f"Pain, {INDICATION}.",
                "findings": f"The heart is normal and the lungs are {FINDINGS} clear.",
                "impression": f"No acute {IMPRESSION}.",
            }
        )
    return write(folder / "studies.jsonl", rows)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def breakage(source, number):
    """Break the body of a study's image; its header stays."""
    path = next(source.parent.glob(f"*/{IMAGE}{number}.png"))
    path.write_bytes(path.read_bytes()[:-40])


@pytest.fixture(autouse=True)
def default_level():
    """What `dive` without -v logs, whatever ran before."""
    dives = logging.getLogger("dive")
    before = dives.level
    dives.setLevel(logging.WARNING)
    yield
    dives.setLevel(before)


class Shell:
    """Runs commands as the command line does, and keeps all that came out of them."""

    def __init__(self, capsys, caplog, monkeypatch):
        self._capsys, self._caplog, self._monkeypatch = capsys, caplog, monkeypatch
        self.said = ""

    def __call__(self, *words):
        """The exit code, and what was printed."""
        self._monkeypatch.setattr(sys, "argv", ["dive", *map(str, words)])
        code = 0
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            try:
                cli.main()
            except SystemExit as stop:
                code = int(stop.code or 0)
        out = self._capsys.readouterr()
        logged = "".join(f"{one.levelname} {one.getMessage()}\n" for one in self._caplog.records)
        self._caplog.clear()
        said = out.out + out.err + logged
        self.said += said
        return code, said


@pytest.fixture
def shell(capsys, caplog, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets its own
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return Shell(capsys, caplog, monkeypatch)


def leaks(folder):
    """(file, canary) of every file below whose name or content holds one."""
    found = []
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        found += [(name, word) for word in CANARY.findall(name)]
        if path.is_file() and path.name not in HOLDS_REPORTS:
            text = path.read_bytes().decode("latin-1")
            found += [(name, word) for word in CANARY.findall(text)]
    return found


def test_no_canary_leaves_the_chain(tiny_llava, source, tmp_path, shell):
    out = tmp_path / "out"
    out.mkdir()
    train = ["distill", "--backbone", tiny_llava, "--studies", source, "--steps", 4, "--rank", 2,
             "--batch-size", 2, "--demonstrations", 1, "--image-cache", out / "cache", "--set",
             "save_steps=1", "--set", "calibration_studies=1"]  # fmt: skip
    code, said = shell(*train, "--validation", 0.3, "--out", out / "whole")
    assert code == 0 and "tokens each" in said
    breakage(source, 5)
    broken = ["distill", "--backbone", tiny_llava, "--studies", source, "--steps", 6, "--rank", 2,
              "--batch-size", 1, "--preset", "dive-ce", "--set", "save_steps=1", "--set",
              "calibration_studies=1", "--out", out / "broken"]  # fmt: skip
    code, said = shell(*broken)
    assert code == 1 and "studies.jsonl:6: study 's5': cannot read the image (1 of 1)" in said
    assert "can be resumed" in said and (out / "broken" / "checkpoints" / "run.json").is_file()
    assert leaks(out) == []
    code, said = shell(*broken, "--resume", "--on-error", "skip")
    assert code == 0 and "1 skipped" in said
    assert "s5" in (out / "broken" / "skipped.jsonl").read_text()
    write_reports = ["generate", "--backbone", tiny_llava, "--adapter", out / "broken",
                     "--studies", source, "--max-new-tokens", 2, "--batch-size", 1, "--out",
                     out / "reports.jsonl"]  # fmt: skip
    code, said = shell(*write_reports)
    assert code == 1 and "study 's5'" in said and (out / "reports.jsonl.partial").is_file()
    assert leaks(out) == []
    code, said = shell(*write_reports, "--on-error", "skip")
    assert code == 0 and "going on: 5 of 6" in said
    scores = ["evaluate", "--predictions", out / "reports.jsonl", "--references", source]
    assert shell(*scores)[0] == 1
    assert shell(*scores, "--allow-missing", "--per-report", out / "scores.jsonl")[0] == 0
    assert CANARY.findall(shell.said) == []
    assert leaks(out) == []
    # at the level of -v the path is said, for whoever has to mend the file
    source.parent.rename(source.parent.with_name("moved"))
    moved = source.parent.with_name("moved") / "studies.jsonl"
    next(moved.parent.glob(f"*/{IMAGE}5.png")).unlink()
    code, said = shell("-v", "distill", "--backbone", tiny_llava, "--studies", moved, "--out",
                       out / "new")  # fmt: skip
    assert code == 1 and f"{IMAGE}5.png" in said


ROW = {"id": "x", "images": [f"{IMAGE}.png"], "findings": f"All {FINDINGS}.", "patient": PATIENT}
BAD_ROWS = {
    "no such image": ROW,
    "an image that is none": ROW | {"images": [{"path": f"/{FOLDER}/a.png"}]},
    "a path that no file has": ROW | {"images": [f"/{FOLDER}/\0.png"]},
    "a patient of another kind": ROW | {"patient": [PATIENT]},
    "a text of another kind": ROW | {"findings": [FINDINGS]},
    "an indication of another kind": ROW | {"indication": {INDICATION: 1}},
    "no id": {name: value for name, value in ROW.items() if name != "id"},
    "an id of another kind": ROW | {"id": [PATIENT]},
    "images that are none": ROW | {"images": f"/{FOLDER}/a.png"},
    "a table of patients": {f"{PATIENT}-1 {FINDINGS}": FINDINGS},
    "no JSON": f'{{"id": "x", "findings": "{FINDINGS}',
    "no object": [FINDINGS],
    "a key twice": f'{{"id": "x", "{PATIENT} 1": 1, "{PATIENT} 1": "{FINDINGS}"}}',
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_line_is_told_of_without_what_it_says(name, tmp_path, caplog):
    folder = tmp_path / SOURCE
    folder.mkdir()
    row = BAD_ROWS[name]
    line = row if isinstance(row, str) else json.dumps(row)
    path = folder / "studies.jsonl"
    draw_film(1).save(folder / "good.png")
    good = json.dumps({"id": "good", "images": ["good.png"], "findings": "Clear."})
    path.write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(DiveError, match=r"studies\.jsonl:2: ") as caught:
        read_studies(path, target="findings")
    skipped = Skipped()
    read_studies(path, on_error="skip", skipped=skipped)
    assert len(skipped) == 1
    assert CANARY.findall(str(caught.value) + json.dumps(skipped.entries) + caplog.text) == []


HEAD = "dicom_id,subject_id,study_id,ViewPosition\n"
CELLS = "00000000-00000000-00000000-00000001,10000032,50000001,PA\n"
BAD_TABLES = {
    "a cell that is another's": HEAD + f"{FINDINGS},10000032,50000001,PA\n",
    "a patient that is none": HEAD + CELLS.replace("10000032", PATIENT),
    "another patient": HEAD + CELLS + CELLS.replace("01,10000032", "02,10000099"),
    "no header": CELLS.replace("10000032", PATIENT),
    "no report file": HEAD + CELLS,
    "cells too many": HEAD + f"{PATIENT},{FINDINGS},1,2,3,4,5\n",
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_told_of_by_file_row_and_column(name, tmp_path, caplog):
    root = tmp_path / SOURCE
    folder = root / "files" / "p10" / "p10000032" / "s50000001"
    folder.mkdir(parents=True)
    draw_film(1).save(folder / "00000000-00000000-00000000-00000001.jpg")
    (root / "mimic-cxr-2.0.0-metadata.csv").write_text(BAD_TABLES[name])
    with pytest.raises(DiveError, match=r"row \d|study 's50000001'") as caught:
        open_studies(f"mimic-cxr:{root}").read()
    said = str(caught.value) + caplog.text
    assert CANARY.findall(said) == [] and "10000032" not in said and "10000099" not in said


def test_what_was_read_is_told_by_its_last_names(tmp_path):
    root = tmp_path / SOURCE / "iu"
    root.mkdir(parents=True)
    (root / "indiana_reports.csv").write_text("uid,findings,impression\n1,Clear.,Normal.\n")
    (root / "indiana_projections.csv").write_text("uid,filename,projection\n1,a.png,Frontal\n")
    (root / "images").mkdir()
    draw_film(1).save(root / "images" / "a.png")
    report = open_studies(f"iu-xray:{root}").read().summary
    assert "iu-xray:iu: 1 studies" in str(report) and "indiana_reports.csv" in str(report)
    assert CANARY.findall(str(report)) == []
    assert all(SOURCE in file for file in report.files)  # for programs


def test_a_study_is_no_text_in_a_message(source):
    study = read_studies(source)[0]
    said = f"{study} {study!r} {[study]}"
    assert "Study('s0', 1 images; patient, indication, findings, impression)" in said
    assert CANARY.findall(said) == []
    with pytest.raises(DiveError) as caught:
        dive.generate(object(), 3, processor=study)
    assert CANARY.findall(str(caught.value)) == []


def lost(path):
    raise FileNotFoundError(2, "No such file or directory", path)


def confused(text):
    raise ValueError(f"cannot parse {text!r} of '/{FOLDER}/a b/c.png' at /{FOLDER}/x.png")


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (f"{FOLDER}/no.png", "there is no image file (1 of 1)"),
        (Path(f"~zyxnobody/{FOLDER}/no.png"), "(1 of 1) has a path in a home folder that is not"),
        (Path("a" * 300 + FOLDER), "(1 of 1)"),
        (Path(f"{FOLDER}.txt"), "cannot read the image (1 of 1): cannot identify image file"),
        (Path(f"{FOLDER}.dcm"), "the image (1 of 1)"),
        (LazyImage("row 3", lambda: lost(f"/{FOLDER}")), "FileNotFoundError: No such file"),
        (LazyImage("row 3", lambda: confused("x")), "ValueError: cannot parse"),
    ],
)  # fmt: skip
def test_an_image_is_named_by_its_place(image, said, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for name in (f"{FOLDER}.txt", f"{FOLDER}.dcm"):
        Path(name).write_bytes(b"no image" * 40)
    with pytest.raises(DiveError) as caught:
        Study("x", (image,), source="t:1").load_images()
    assert str(caught.value).startswith("t:1: study 'x': ") and said in str(caught.value)
    assert CANARY.findall(str(caught.value) + caplog.text) == []


def test_a_warning_of_a_film_names_its_place(tmp_path):
    from PIL import Image

    for number in range(2):
        Image.new("L", (9, 9)).save(tmp_path / f"{IMAGE}{number}.png")
    both = tuple(tmp_path / f"{IMAGE}{number}.png" for number in range(2))
    with pytest.warns(UserWarning) as caught:
        Study("x", both, source="t:1").load_images()
    said = [str(one.message) for one in caught]
    assert ["1 of 2" in said[0], "2 of 2" in said[1], len(said)] == [True, True, 2]
    assert CANARY.findall(" ".join(said)) == []


def test_annotations_of_other_texts_are_not_quoted(tmp_path):
    path = tmp_path / "annotations.json"
    entity = {"tokens": FINDINGS, "label": "OBS-DP", "start_ix": 0, "end_ix": 0, "relations": []}
    path.write_text(json.dumps([{"text": FINDINGS, "entities": {"1": entity}}]))
    with pytest.raises(DiveError, match="no annotation for 1 of 2 texts, the first of them text 2"):
        RadGraphFile(path).annotate([FINDINGS, f"Other {FINDINGS}"])
    for wrong in ({"label": [FINDINGS]}, {"relations": FINDINGS}, {"relations": [FINDINGS]},
                  {"relations": [["modify", FINDINGS + "2"]]}):  # fmt: skip
        bad = {"text": FINDINGS, "entities": {FINDINGS: entity | wrong}}
        path.write_text(json.dumps({f"/{FOLDER}/a.png": bad}))
        with pytest.raises(DiveError) as caught:
            RadGraphFile(path)
        assert CANARY.findall(str(caught.value)) == []


def test_an_adapter_and_a_run_name_no_disk(tiny_llava, tmp_path):
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=1), dive.load_backbone(tiny_llava))
    assert adapter.metadata["backbone"]["name"] == tiny_llava.name
    assert public_name("org/model") == "org/model" and public_name("") == ""
    assert public_name("/home/somebody/model/") == "model"
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "a.json").write_text('{"text": "Clear .", "entities": {}}')
    config = dive.DistillConfig(
        decisive=f"radgraph:{folder / 'a.json'}", cache_images=str(folder / "cache")
    )
    first = settings_fingerprint(config, "findings", None, None)
    assert CANARY.findall(json.dumps(first)) == []
    assert first["config"]["decisive"] == "radgraph:a.json"


def test_a_librarys_words_are_kept_without_what_is_private(caplog):
    caplog.set_level(logging.INFO, logger="dive")
    report = f"The heart is {FINDINGS} and the lungs are clear."
    error = ValueError(f"cannot tokenise 'heart is {FINDINGS} and' of '/data/{FOLDER}/a.png'")
    said = public_reason(error, [report, None, ""], "study 'x'")
    assert said == "cannot tokenise '...' of ..." or CANARY.findall(said) == []
    assert "cannot tokenise" in said and CANARY.findall(said) == []
    assert FINDINGS in caplog.text  # at INFO
    assert without_texts("bad token 'No' in 'No'", ["No"]) == "bad token 'No' in 'No'"
    assert without_texts("a mass", ["mass"]) == "a ..."
    # as a library cleaned it, which may be mixed with the text as it was
    assert without_texts("of mrs example's lung", ["Mrs\n Example's LUNG"]) == "of ..."
    assert without_texts("'MRS EXAMPLE' İmrs", ["Mrs Example"]) == "'...' İmrs"
    assert (
        without_paths(f"of '/x y/{FOLDER}' and C:\\{FOLDER}\\a.png here") == "of ... and ... here"
    )
    assert (
        public_reason(OSError(28, "No space left on device", f"/{FOLDER}"))
        == "No space left on device"
    )
