"""No output, and no list of skipped input, replaces a file that the command reads."""

import json
import os
import shutil

import pytest
from tiny import draw_film
from typer.testing import CliRunner

from dive.cli import app
from dive.data.overwriting import check_not_in_dataset, check_not_read
from dive.data.skipping import Skipped, check_skipped
from dive.errors import DiveError


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def there(tmp_path):
    """Studies with films, demonstrations, a template, a backbone's and an adapter's folder; none
    of them can be loaded."""
    for name in ("s", "d"):
        (tmp_path / name).mkdir()
        draw_film(1).save(tmp_path / name / "film.png")
        row = {"id": "a", "images": ["film.png"], "findings": "Clear."}
        (tmp_path / name / "studies.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "b" / "more").mkdir(parents=True)
    (tmp_path / "b" / "config.json").write_text("{}")
    (tmp_path / "b" / "more" / "x.jinja").write_text("x")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    (tmp_path / "t.jinja").write_text("x")
    os.link(tmp_path / "s" / "film.png", tmp_path / "hard.png")
    (tmp_path / "soft.png").symlink_to("s/film.png")
    return tmp_path


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "out",
    ["s/studies.jsonl", "s/film.png", "hard.png", "soft.png", "s/../s/film.png", "d/studies.jsonl",
     "d/film.png", "b/config.json", "b/more/x.jinja", "a/adapter_config.json", "t.jinja"],
)  # fmt: skip
def test_generate_replaces_nothing_that_it_reads(out, there, monkeypatch):
    monkeypatch.setattr("dive.adapter.adapter.SteeringAdapter.from_pretrained", lambda _: None)
    before = content(there)
    words = ["--backbone", there / "b", "--studies", there / "s" / "studies.jsonl",
             "--demonstrations", there / "d" / "studies.jsonl", "--adapter", there / "a",
             "--template", there / "t.jinja", "--overwrite", "--out", there / out]  # fmt: skip
    with pytest.raises(DiveError, match=f"--out .*{out}: is one of the files to read; name anot"):
        call("generate", *words)
    assert content(there) == before


def test_generate_does_not_remove_the_studies_as_an_old_list(there):
    studies = there / "s" / "r.skipped.jsonl"
    shutil.move(there / "s" / "studies.jsonl", studies)
    words = ["--backbone", there / "b", "--studies", studies, "--out", there / "s" / "r.jsonl"]
    with pytest.raises(DiveError, match="r.skipped.jsonl: is one of the files to read"):
        call("generate", *words)
    assert studies.is_file()


@pytest.mark.parametrize("name", ["skipped.jsonl", "adapter_config.json", "adapter.safetensors"])
def test_distill_replaces_nothing_that_it_reads(name, there):
    out = there / "s"
    words = ["--backbone", there / "b", "--out", out, "--overwrite", "--studies"]
    shutil.move(out / "studies.jsonl", out / name)
    with pytest.raises(
        DiveError, match=f"{name}: (is one of the files to read|.*no list of skipped)"
    ):
        call("distill", *words, f"jsonl:{out / name}")
    # as a film, and as a file of the backbone
    shutil.copy(out / "film.png", out / name)
    row = {"id": "a", "images": [name], "findings": "Clear."}
    (out / "studies.jsonl").write_text(json.dumps(row) + "\n")
    before = content(there)
    with pytest.raises(
        DiveError, match=f"{name}: (is one of the files to read|.*no list of skipped)"
    ):
        call("distill", *words, out / "studies.jsonl")
    assert content(there) == before
    if name == "adapter_config.json":
        (there / "b" / name).write_text("{}")
        with pytest.raises(DiveError, match=f"b/{name}: is one of the files to read"):
            call("distill", "--backbone", there / "b", "--out", there / "b", "--overwrite",
                 "--studies", there / "d" / "studies.jsonl")  # fmt: skip


def test_evaluate_and_conversion_replace_nothing_that_they_read(there):
    predictions = there / "p.jsonl"
    predictions.write_text('{"id": "a", "report": "Clear."}\n')
    truth = there / "s" / "studies.jsonl"
    before = content(there)
    for out, more in ((predictions, ()), (truth, ()), (there / "t.jinja",
                      ("--radgraph-annotations", there / "t.jinja"))):  # fmt: skip
        with pytest.raises(DiveError, match="--per-report .*: is one of the files to read"):
            call("evaluate", "--predictions", predictions, "--references", truth, *more,
                 "--per-report", out)  # fmt: skip
    for out in (truth, there / "s" / "film.png", there / "hard.png"):
        with pytest.raises(DiveError, match="is one of the files to read; name another"):
            call("inspect", "dataset", truth, "--out", out)
    assert content(there) == before
    assert call("inspect", "dataset", truth, "--out", there / "new.jsonl").exit_code == 0


def test_the_files_of_a_dataset_are_all_read(tmp_path):
    root = tmp_path / "iu"
    (root / "deep").mkdir(parents=True)
    table = root / "deep" / "reports.csv"
    table.write_text("kept")
    (root / "mine.jsonl").write_text("")
    with pytest.raises(DiveError, match="among the files of the dataset"):
        call("inspect", "dataset", f"iu-xray:{root}", "--out", table)
    for out, spec in (
        (table, f"iu-xray:{tmp_path / 'none'} --images-root {root}"),
        (table, f"mimic-cxr:{tmp_path / 'none'} --reports-root {root}"),
    ):
        with pytest.raises(DiveError, match="--per-report .*: exists among the files"):
            call("evaluate", "--predictions", "/none", "--per-report", out, "--references",
                 *spec.split())  # fmt: skip
    assert table.read_text() == "kept"
    check_not_in_dataset(
        {root / "mine.jsonl": "", root / "new.csv": "", tmp_path / "x": ""}, [root]
    )
    check_not_read({tmp_path / "none": ""}, [None, 3, "", "\0", "x" * 300, tmp_path / "none", root])


def test_a_list_of_what_was_skipped_is_its_outputs_own(tmp_path):
    path = tmp_path / "a.skipped.jsonl"
    check_skipped(path)
    for text in ("notes\n", '{"id": "a"}\n', "[1]\n", "\xff\n", "[" * 100_000, "\n"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(DiveError, match="a.skipped.jsonl: exists and is no list of skipped"):
            call("generate", "--backbone", "/none", "--out", tmp_path / "a.jsonl", "a.png")
        assert path.read_text(encoding="latin-1") == text
    skipped = Skipped()
    skipped.add("a", "b", "c")
    skipped.write(path)
    check_skipped(path)


def test_two_outputs_have_two_lists(tiny_llava, tmp_path):
    films = [tmp_path / "good.png", tmp_path / "bad.png"]
    for film in films:
        draw_film(1).save(film)
    films[1].write_bytes(b"none")
    for out, given in (("a.jsonl", films), ("a", films[:1])):
        call("generate", "--backbone", tiny_llava, *given, "--out", tmp_path / out,
             "--on-error", "skip", "--max-new-tokens", 2, "--device", "cpu")  # fmt: skip
    assert len((tmp_path / "a.skipped.jsonl").read_text().splitlines()) == 1
    call("generate", "--backbone", tiny_llava, *films, "--out", tmp_path / "a", "--overwrite",
         "--on-error", "skip", "--max-new-tokens", 2, "--device", "cpu")  # fmt: skip
    assert (tmp_path / "a.skipped").is_file()
