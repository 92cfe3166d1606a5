"""Errors about untrusted files do not contain paths or quotations of their content."""

import json
import os
import zipfile

import pytest
from data_trees import film, r2gen_iu
from PIL import Image

from dive.data.datasets.json_lines import read_studies
from dive.data.datasets.mimic_cxr import ReportArchive
from dive.data.datasets.paths import read_text
from dive.data.datasets.tables import check_columns, header_of
from dive.data.films import films_of
from dive.data.images.digests import digest_of_image
from dive.data.images.load import LazyImage
from dive.data.study import Study
from dive.errors import DiveError
from dive.files.json_lines import write_jsonl
from dive.generation.resume import demonstrations_digest, studies_digest
from dive.training.feature_store import key_of
from dive.training.fingerprint import studies_fingerprint
from dive.training.selection import Selection


@pytest.mark.parametrize("suffix", [".png", ".dcm", ".dcm.gz", ""])
def test_a_pipe_among_a_studys_images_is_named_by_its_place(tmp_path, suffix):
    pipe = tmp_path / f"CANARY{suffix}"
    os.mkfifo(pipe)
    study = Study("s9", (pipe,), source="x.jsonl:3")
    said = "x.jsonl:3: study 's9': cannot read the image (1 of 1): is a pipe, want a regular file"
    shown = (study.load_images, lambda: key_of(study), lambda: demonstrations_digest([study]))
    for look in shown:
        with pytest.raises(DiveError) as caught:
            look()
        assert str(caught.value) == said


def test_pipes_in_the_place_of_tables_and_reports_are_not_waited_for(tmp_path):
    for name in ("t.csv", "t.csv.gz", "s5.txt", "r.zip"):
        os.mkfifo(tmp_path / name)
    for name in ("t.csv", "t.csv.gz"):
        with pytest.raises(DiveError, match=rf"^{name}: is a pipe, want a table"):
            header_of(tmp_path / name)
    with pytest.raises(DiveError, match=r"^s: the report file is a pipe, want a regular file$"):
        read_text(tmp_path / "s5.txt", "s")
    with pytest.raises(DiveError, match=r"^r.zip: is a pipe, want a zip archive$"):
        ReportArchive(tmp_path / "r.zip")
    name = "files/p10/p10000032/s50414267.txt"
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as made:
        made.writestr(name, "FINDINGS: Clear.")
    archive = ReportArchive(tmp_path / "good.zip")
    assert archive.read("p10/p10000032/s50414267.txt", "s") == "FINDINGS: Clear."


def test_a_header_with_some_of_the_columns_is_not_quoted(tmp_path):
    path = tmp_path / "t.csv"
    with pytest.raises(DiveError) as caught:
        check_columns(path, ["uid", "MeSH"], ["uid", "CANARY77", "findings"])
    assert str(caught.value) == (
        "t.csv: row 1: has no column 'MeSH'; the columns are uid, ..., findings"
    )


def test_numbers_and_texts_that_python_cannot_take_are_told_in_our_words(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": ' + "1" * 5000 + "}\n")
    with pytest.raises(DiveError, match=r"^rows.jsonl:1: has a whole number of thousands of dig"):
        read_studies(path)
    path.write_text('{"id": "\\ud800"}\n')
    with pytest.raises(DiveError, match=r"^rows.jsonl:1: has a lone surrogate"):
        read_studies(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("image_path", "a.png", "'image_path' is a string, want a list of paths"),
        ("report", ["Clear."], "'report' is a list, want a string"),
        ("id", 1.5, "'id' is a number, want a string or a whole number"),
    ],
)
def test_an_item_of_another_kind_is_told_what_it_wants(tmp_path, key, value, said):
    from dive.data import open_studies

    root = r2gen_iu(tmp_path)
    path = next(root.rglob("annotation.json")) if root.is_dir() else root
    groups = json.loads(path.read_text())
    groups["train"][0][key] = value
    path.write_text(json.dumps(groups))
    with pytest.raises(DiveError) as caught:
        open_studies(f"r2gen:{path}").read()
    assert f"annotation.json: train[0]: {said} (keys: " in str(caught.value)


def test_a_special_token_in_an_indication_names_the_study_once(tiny_llava, tmp_path):
    import dive

    film(tmp_path / "a.png")
    row = {"id": "s1", "images": ["a.png"], "indication": "<image> cough"}
    write_jsonl(tmp_path / "mark.jsonl", [row])
    studies = read_studies(tmp_path / "mark.jsonl")
    with pytest.raises(DiveError) as caught:
        dive.generate(dive.load_backbone(tiny_llava), studies)
    said = str(caught.value)
    assert said.startswith("mark.jsonl:1: study 's1': the indication holds the special token")
    assert said.count("study 's1'") == 1


def test_the_digests_by_which_unfinished_runs_go_on(tmp_path):
    """A resumed run compares them with those of the version that began it."""
    (tmp_path / "film.bin").write_bytes(b"film")
    (tmp_path / "large.bin").write_bytes(bytes(range(256)) * 2000)
    picture = Image.new("L", (3, 2), 7)
    picture.putpixel((0, 0), 200)
    lazy = LazyImage("row", lambda: b"film")
    images = (tmp_path / "film.bin", tmp_path / "large.bin", picture, lazy)
    study = Study("é", images, findings="F.", patient="p")
    assert key_of(study) == ("f11047b1893ad95ee8aca2384a040ee82ea8d2a4ab30a697f1bac34a3219e5b8")
    assert demonstrations_digest([study]) == "bcf884d2de49b5954753b2bf1c5127b4"
    assert studies_digest([study]) == "ba62c7a9cb71f821a2269ced12353fba"
    assert films_of([study]) == {"4a99557e4033c353": "7396e02027210235"}
    assert studies_fingerprint(Selection([study], [], None), "findings")["studies_hash"] == (
        "d6405e736b206d03"
    )
    film, large, pixels, fetched = (digest_of_image(one, "s", "1 of 1")[:32] for one in images)
    assert film == fetched == "d0607f7ad2628b2af9158dfba06ce871"
    assert large == "8acfcabd38b512d5605abb0d51d67f99"
    assert pixels == "e61b1e9384e550f51be57638e51f57c5"
