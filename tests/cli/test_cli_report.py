"""`dive report`: what it reads, what it refuses, and what the page and the JSON file hold."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import call
from PIL import Image

import dive
from dive.cli.report_inputs import training_of_logs
from dive.errors import DiveError
from dive.files.json_lines import write_jsonl

TRUTHS = {
    "a": "Small left pleural effusion. No pneumothorax.",
    "b": "The lungs are clear.",
    "c": "Mild cardiomegaly.",
}
OTHERS = {
    "a": "Large right pleural effusion.",
    "b": "Left pneumothorax.",
    "c": "Mild cardiomegaly.",
}


@pytest.fixture
def files(tmp_path):
    """References with a film each, and the predictions of two methods."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)
    for name in TRUTHS:
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    write_jsonl(
        tmp_path / "truth.jsonl",
        [
            {"id": name, "images": [f"{name}.png"], "findings": text, "patient": f"p{name}",
             "indication": "Cough."}
            for name, text in TRUTHS.items()
        ],
    )  # fmt: skip
    for method, texts in (("good", TRUTHS), ("other", OTHERS)):
        write_jsonl(
            tmp_path / f"{method}.jsonl",
            [{"id": name, "report": text, "finish_reason": "eos"} for name, text in texts.items()],
        )
    return tmp_path


def report(files, *more, predictions=("good.jsonl", "other.jsonl")):
    each = [part for name in predictions for part in ("--predictions", files / name)]
    return call(
        "report", "--references", files / "truth.jsonl", *each, "--out", files / "page.html",
        "--json", files / "page.json", "--bootstrap", "20", *more,
    )  # fmt: skip


def data_of(files):
    """The data that the page embeds."""
    page = (files / "page.html").read_text(encoding="utf-8")
    embedded = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, re.S)
    return json.loads(embedded.group(1))


def test_the_page_and_the_json_file_hold_the_same(files):
    report(files, "--title", "Two methods")
    data = data_of(files)
    assert json.loads((files / "page.json").read_text(encoding="utf-8")) == data
    assert [one["name"] for one in data["methods"]] == ["good", "other"]
    assert data["title"] == "Two methods" and data["notes"] == []
    assert [study["id"] for study in data["studies"]] == list(TRUTHS)
    first = data["studies"][0]
    assert (first["patient"], first["indication"]) == ("pa", "Cough.")
    assert first["images"][0]["src"].startswith("data:image/jpeg;base64,")
    assert (first["images"][0]["width"], first["images"][0]["height"]) == (30, 40)
    assert first["reports"][1]["found"][0]["outcome"] == "both"


def test_the_numbers_are_those_of_dive_evaluate(files):
    report(files)
    found = json.loads(
        call(
            "evaluate", "--references", files / "truth.jsonl", "--predictions",
            files / "other.jsonl", "--baseline", files / "good.jsonl", "--bootstrap", "20",
            "--json",
        ).stdout
    )  # fmt: skip
    data = data_of(files)
    shown = {key: one["value"] for key, one in data["scores"][1].items()}
    assert shown == {key: found[key] for key in found["variants"]}
    assert data["differences"][0]["scores"] == found["differences"]
    assert data["bootstrap"] == found["bootstrap"]
    assert data["classes"][1] == found["classes"]
    assert data["terciles"][1] == found["terciles"]


def test_without_a_backbone_neither_torch_nor_transformers_is_loaded(files):
    arguments = ["report", "--references", files / "truth.jsonl", "--predictions",
                 files / "good.jsonl", "--out", files / "page.html"]  # fmt: skip
    code = (
        "import sys; from dive.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_names_of_methods(files):
    report(files, predictions=("good.jsonl",))
    (files / "a=b.jsonl").write_text((files / "good.jsonl").read_text())
    call(
        "report", "--references", files / "truth.jsonl", "--predictions",
        f"the best={files / 'other.jsonl'}", "--predictions", files / "a=b.jsonl",
        "--out", files / "page.html", "--bootstrap", "0",
    )  # fmt: skip
    data = data_of(files)
    assert [one["name"] for one in data["methods"]] == ["the best", "a=b"]
    assert [one["file"] for one in data["methods"]] == ["other.jsonl", "a=b.jsonl"]
    assert data["bootstrap"] is None
    # a name may be longer than that of a file
    report(files, "--predictions", f"{'long' * 80}={files / 'good.jsonl'}")
    with pytest.raises(DiveError, match="'good' comes twice; give each a name: NAME=FILE"):
        report(files, predictions=("good.jsonl", "good.jsonl"))


def test_other_studies_are_one_error_or_said_on_the_page(files):
    write_jsonl(
        files / "other.jsonl",
        [{"id": name, "report": "No effusion."} for name in ("a", "b", "z")],
    )
    with pytest.raises(DiveError, match="other.jsonl has no prediction under 1 id: c"):
        report(files)
    report(files, "--allow-missing")
    data = data_of(files)
    assert data["notes"] == [
        "other has reports for 1 study without a reference, which are left out: z.",
        "other has no report for 1 study: c. Scores are of the studies that every method has a "
        "report for.",
    ]
    assert data["studies"][2]["reports"][1] is None


def test_duplicate_ids_are_refused(files):
    lines = (files / "other.jsonl").read_text()
    (files / "other.jsonl").write_text(lines + lines.splitlines()[0] + "\n")
    with pytest.raises(DiveError, match="other.jsonl:4: id 'a' comes twice"):
        report(files)


def test_films_that_are_gone_are_said_on_the_page(files):
    (files / "b.png").unlink()
    result = report(files)
    data = data_of(files)
    assert data["notes"] == ["Films of 1 study are gone or cannot be read: b."]
    assert data["notes"][0] in " ".join(result.stderr.split())
    assert data["studies"][1]["images"][0]["src"] is None


def test_films_beside_the_page_or_none(files):
    report(files, "--images", "beside", "--image-size", "20")
    assert data_of(files)["studies"][2]["images"][0]["src"] == "page-films/000002.jpg"
    assert Image.open(files / "page-films" / "000002.jpg").size == (15, 20)
    report(files, "--images", "none")
    assert data_of(files)["studies"][2]["images"] == []


def test_curves_of_logs(files):
    (files / "log.jsonl").write_text('{"loss": 2.0, "step": 1}\n{"loss": NaN, "step": 2}\n')
    report(files, "--log", f"DIVE={files}")
    data = data_of(files)
    assert data["training"] == [
        {"name": "DIVE", "curves": [{"name": "loss", "steps": [1], "values": [2.0]}]}
    ]
    assert data["notes"] == ["1 value in the log of DIVE are no finite numbers."]


def test_outputs_replace_no_input(files):
    for option, name in (("--out", "good.jsonl"), ("--json", "truth.jsonl")):
        before = (files / name).read_bytes()
        with pytest.raises(DiveError, match=f"{option} .*{name}: is one of the files to read"):
            report(files, option, files / name)
        assert (files / name).read_bytes() == before


@pytest.mark.parametrize(
    "more, message",
    [
        (["--backbone", "x"], "--backbone and --adapter go together"),
        (["--explain-method", "good"], "--explain-method has no use without --backbone"),
        (["--log", "."], "has no log.jsonl, want the folder of a training"),
        (["--bootstrap", "-1"], "--bootstrap is -1, want a whole number >= 0"),
        (["--images", "inside"], "images is 'inside', want one of embed, beside, none"),
        (["--metrics", "blue"], "--metrics is 'blue'"),
        (["--baseline", "third"], "baseline is 'third', want one of 'good', 'other'"),
        (["--target", "all"], "target is 'all'"),
    ],
)
def test_bad_options_name_the_option(files, more, message):
    with pytest.raises(DiveError, match=message):
        report(files, *more)
    assert not (files / "page.html").exists()


@pytest.fixture(scope="module")
def steered(tiny_llava, tmp_path_factory):
    """An adapter of the tiny backbone, with weights that have an effect."""
    import torch

    backbone = dive.load_backbone(tiny_llava, dtype="float32", device="cpu")
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=4), backbone)
    torch.manual_seed(0)
    for layer in adapter.layers.values():
        torch.nn.init.normal_(layer.up, std=0.1)
    folder = tmp_path_factory.mktemp("adapter") / "mine"
    adapter.save_pretrained(folder)
    return folder


def test_the_inside_of_the_worst_reports(files, tiny_llava, steered):
    inside = ["--backbone", tiny_llava, "--adapter", steered]
    report(files, *inside, "--explain", "2", "--dtype", "float32", "--device", "cpu")
    explained = data_of(files)["explained"]
    assert explained["method"] == 1
    assert [one["study"] for one in explained["studies"]] == [0, 1]  # c has no error
    assert all(len(one["tokens"]) == len(one["probability"]) for one in explained["studies"])
    report(files, *inside, "--explain", "1", "--explain-method", "good", "--device", "cpu")
    assert data_of(files)["explained"]["method"] == 0
    with pytest.raises(DiveError, match="--explain-method is 'third', want one of 'good', 'other'"):
        report(files, *inside, "--explain-method", "third")


def test_the_folder_that_one_is_in_has_a_name(monkeypatch, steered):
    (steered / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    monkeypatch.chdir(steered)
    curves, _ = training_of_logs({}, Path("."))
    (steered / "log.jsonl").unlink()
    assert [one["name"] for one in curves] == ["mine"]


def test_an_adapter_of_another_backbone_is_refused(files, tiny_qwen, steered):
    with pytest.raises(DiveError, match="backbone"):
        report(files, "--backbone", tiny_qwen, "--adapter", steered)
    assert not (files / "page.html").exists()


def test_no_output_replaces_another_or_what_is_read(files):
    (files / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    for more, message in (
        (("--json", files / "page.html"), "--json .*page.html: is written already"),
        (("--json", files / "log.jsonl", "--log", files / "log.jsonl"), "one of the files to read"),
        (("--json", files / "a.png"), "--json .*a.png: is one of the files to read"),
    ):
        with pytest.raises(DiveError, match=message):
            report(files, *more)
    assert not (files / "page.html").exists()
    assert (files / "log.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_films_beside_do_not_replace_the_studies_own(files):
    """A folder of numbered films looks like an earlier page's, and may be the studies' own."""
    folder = files / "page-films"
    folder.mkdir()
    Image.open(files / "a.png").convert("L").save(folder / "000000.jpg")
    truths = [
        {"id": name, "images": ["page-films/000000.jpg"], "findings": text}
        for name, text in TRUTHS.items()
    ]
    write_jsonl(files / "truth.jsonl", truths)
    before = (folder / "000000.jpg").read_bytes()
    with pytest.raises(
        DiveError, match=r"images beside the page .*000000.jpg: is one of the files to read"
    ):
        report(files, "--images", "beside")
    assert (folder / "000000.jpg").read_bytes() == before
