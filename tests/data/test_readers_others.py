"""CheXpert Plus, IU X-Ray, R2Gen, JSON lines and dataset objects through `open_studies`."""

import json
import os
import shutil
from pathlib import Path

import data_trees as trees
import pytest
from data_trees import (
    Plus,
    balanced,
    film,
    iu_kaggle,
    iu_xml,
    plus_row,
    r2gen_iu,
    r2gen_mimic,
    write_csv,
)
from PIL import Image

from dive.data import Skipped, Studies, open_studies
from dive.data.datasets.iu_xray import hashed_split
from dive.data.images.load import LazyImage
from dive.errors import DiveError

# CheXpert Plus


@pytest.fixture
def plus(tmp_path: Path) -> Plus:
    return Plus(tmp_path)


def read(tree: Plus, **options: object) -> Studies:
    return open_studies(f"chexpert-plus:{tree.root}", **options).read()


def test_rows_are_grouped_to_studies_in_the_order_of_their_numbers(plus: Plus) -> None:
    studies = read(plus, target="impression", views="all")
    assert [study.id for study in studies] == [
        "patient2/study1",
        "patient3/study2",
        "patient10/study1",
    ]
    first = studies[0]
    assert first.patient == "patient2"
    assert first.images == tuple(
        plus.root / "PNG" / "train/patient2/study1" / name
        for name in ("view1_frontal.png", "view2_lateral.png")
    )
    assert first.views == ("AP", "LATERAL")
    assert first.findings == "Small left pleural effusion. Heart normal."
    assert first.indication == "Dyspnea."
    assert first.source == f"{plus.table.name}: row 2"
    assert [study.views for study in studies[1:]] == [("PA",), ("FRONTAL",)]
    assert studies.summary.splits == {"train": 2, "valid": 1}
    assert balanced(studies.summary)


def test_default_policy_and_the_split_that_is_not_there(plus: Plus) -> None:
    studies = read(plus)
    assert [len(study.images) for study in studies] == [1, 1]
    assert studies.summary.left_out == {"without a section findings": 1}
    assert balanced(studies.summary)
    test = read(plus, split="test")
    assert [study.split for study in test] == ["valid"]
    assert "split valid only" in str(test.summary)
    assert "`valid` is used as test" in str(test.summary)
    assert "no test split" in str(read(plus, split="val").summary)
    assert [s.id for s in read(plus, split="train", target="impression")] == [
        "patient2/study1",
        "patient10/study1",
    ]


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [
        ("PNG", ".png"),
        ("PNG/PNG", ".png"),
        ("PNGs", ".png"),
        ("CheXpert-v1.0", ".jpg"),
        ("DICOM", ".dcm"),
        (".", ".png"),
    ],
)
def test_image_roots_as_they_occur(tmp_path: Path, folder: str, suffix: str) -> None:
    plus = Plus(tmp_path, folder, suffix)
    image = read(plus)[0].images[0]
    assert image == tmp_path / folder / f"train/patient2/study1/view1_frontal{suffix}"
    assert read(plus, check_files=False)[0].images == (image,)


def test_images_under_another_root(plus: Plus, tmp_path: Path) -> None:
    other = tmp_path / "disk2"
    shutil.move(plus.root / "PNG", other)
    with pytest.raises(DiveError, match="has no folder of images; looked for train/ and valid/"):
        read(plus)
    assert read(plus, images=other)[0].images[0].is_relative_to(other)


def test_labels_come_from_the_json_lines_of_the_target(plus: Plus) -> None:
    image = "train/patient2/study1/view1_frontal.jpg"
    labels = {"Edema": 1.0, "Fracture": None, "Pneumonia": -1.0, "No Finding": 0.0}
    plus.write_labels("findings", {"path_to_image": image, **labels})
    assert read(plus)[0].labels == {"Edema": 1.0, "Pneumonia": -1.0, "No Finding": 0.0}
    assert read(plus)[1].labels is None
    assert read(plus, target="impression")[0].labels is None
    path = plus.write_labels("impression", {"path_to_image": image, "Edema": 2.0})
    with pytest.raises(
        DiveError, match=r"impression_fixed\.json:1: is not an object with path_to_im"
    ):
        read(plus, labels="impression")
    path.write_text("\nnonsense\n")
    skipped = Skipped()
    assert len(read(plus, labels="impression", on_error="skip", skipped=skipped)) == 2
    assert [entry["source"] for entry in skipped] == ["impression_fixed.json:2"]
    with pytest.raises(DiveError, match=r"there is no file .*report_fixed\.json of labels"):
        read(plus, labels="report")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            {"path_to_image": "../x.jpg"},
            "row 3, column 'path_to_image': is a text of 8 characters, want train",
        ),
        (
            {"split": "test"},
            "row 3, column 'split': is a text of 4 characters, want train or valid",
        ),
        ({"frontal_lateral": ""}, "row 3, column 'frontal_lateral': is blank, want Frontal or"),
    ],
)
def test_bad_cells_of_chexpert_plus(plus: Plus, cells: dict[str, str], message: str) -> None:
    plus.rows[1] |= cells
    plus.write()
    with pytest.raises(DiveError) as caught:
        read(plus, target="impression")
    assert message in str(caught.value)
    skipped = Skipped()
    kept = read(plus, target="impression", on_error="skip", skipped=skipped)
    assert [study.id for study in kept] == ["patient2/study1", "patient3/study2"]
    assert message in skipped.entries[0]["reason"]


def test_repeated_rows_and_texts_that_differ(plus: Plus) -> None:
    plus.rows.append(plus.rows[0])
    plus.rows.append(
        plus_row(9, "train/patient2/study1/view3_frontal.jpg", section_findings="Another.")
    )
    film(plus.root / "PNG/train/patient2/study1/view3_frontal.png")
    plus.write()
    studies = read(plus)
    assert studies[0].findings == "Small left pleural effusion. Heart normal."
    assert studies.summary.records == {
        "repeated records of one image": 1,
        "whose text differs from that of the study's first record": 1,
    }
    assert "that of the first record is used" in str(studies.summary)


def test_chexpert_plus_without_its_table_or_columns(plus: Plus) -> None:
    header = [name.replace("section_findings", "findings") for name in trees.PLUS]
    write_csv(plus.table, header, [list(row.values()) for row in plus.rows])
    with pytest.raises(DiveError, match=r"row 1: has no column 'section_findings'; the columns"):
        read(plus)
    data = plus.write().table.read_bytes()
    plus.table.write_bytes(data.replace(b"Effusion.", b"Eff\xfcsion."))
    with pytest.raises(DiveError, match=r"row 2, column 'section_impression': is not UTF-8"):
        read(plus)
    plus.table.write_bytes(data[:-1] + b",extra\n")
    with pytest.raises(DiveError, match=r"row 5: has 29 cells, the header has 28 columns"):
        read(plus)
    plus.table.write_bytes(data.replace(b"No acute disease.", b'"No' + b"x" * 200_000))
    with pytest.raises(DiveError, match=r"row 3: is not a record of a table .*quote left open"):
        read(plus)
    plus.table.write_bytes(b"\xff\xfe" + data)
    with pytest.raises(DiveError, match="is UTF-16"):
        read(plus)
    plus.table.write_bytes(b"")
    with pytest.raises(DiveError, match="is empty, want a table with a header"):
        read(plus)
    os.unlink(plus.table)
    with pytest.raises(DiveError, match=r"has no df_chexpert_plus_240401\.csv"):
        read(plus)


# IU X-Ray


def test_iu_tables_of_kaggle(tmp_path: Path) -> None:
    studies = open_studies(f"iu-xray:{iu_kaggle(tmp_path)}")
    first, second = studies
    assert (first.id, second.id) == ("CXR1", "CXR2")
    assert first.patient is None
    images = tmp_path / "images" / "images_normalized"
    assert first.images == (images / "1_IM-0001-4001.dcm.png",)
    assert first.views == ("FRONTAL",)
    assert first.findings == "Clear lungs. XXXX normal."
    assert second.labels == {"Cardiomegaly": 1.0, "Opacity": 1.0}
    assert studies.summary.left_out == {"without a section findings": 1}
    assert balanced(studies.summary)
    assert "no official split: 70/10/20 by a hash of seed 0 and uid" in str(studies.summary)
    both = open_studies(f"iu-xray:{tmp_path}", views="all", strip_placeholders=True)
    assert [path.name for path in both[0].images] == [
        "1_IM-0001-4001.dcm.png",
        "1_IM-0001-3001.dcm.png",
    ]
    assert both[0].findings == "Clear lungs. normal."
    assert both[1].indication == "-year-old"


def test_iu_xml_files_give_the_same_studies(tmp_path: Path) -> None:
    kaggle = open_studies(f"iu-xray:{iu_kaggle(tmp_path / 'kaggle')}", target="impression")
    root = iu_xml(tmp_path / "xml")
    xml = open_studies(f"iu-xray:{root}", target="impression")
    assert [(s.id, s.findings, s.impression, s.split, s.indication) for s in xml] == [
        (s.id, s.findings, s.impression, s.split, s.indication) for s in kaggle
    ]
    assert xml[0].images == tuple(
        root / "NLMCXR_png" / f"CXR1_1_IM-0001-{number}.png" for number in (4001, 3001)
    )
    assert xml[1].labels == {"Cardiomegaly": 1.0}
    assert "name no views: every image of a study is used" in str(xml.summary)
    assert balanced(xml.summary)
    with pytest.raises(DiveError, match="views is 'frontal', and the XML files do not name"):
        open_studies(f"iu-xray:{root}", views="frontal")
    shutil.copy(tmp_path / "kaggle" / "indiana_projections.csv", root)
    frontal = open_studies(f"iu-xray:{root}", target="impression", views="frontal")
    assert frontal[0].images == (root / "NLMCXR_png" / "CXR1_1_IM-0001-4001.png",)


def test_the_split_of_iu_hangs_on_seed_and_uid_alone() -> None:
    splits = [hashed_split(0, uid) for uid in range(1, 4001)]
    shares = {name: splits.count(name) / 4000 for name in set(splits)}
    assert shares == pytest.approx({"train": 0.7, "validate": 0.1, "test": 0.2}, abs=0.02)
    assert [hashed_split(0, uid) for uid in (1, 2, 3, 4, 5, 6)] == splits[:6]
    assert [hashed_split(1, uid) for uid in range(1, 4001)] != splits


def test_iu_splits_do_not_overlap(tmp_path: Path) -> None:
    rows = [(uid, "", "normal", "", "", "", "Clear.", "") for uid in range(1, 41)]
    files = [(uid, f"{uid}.png", "Frontal") for uid in range(1, 41)]
    spec = f"iu-xray:{iu_kaggle(tmp_path, rows, files)}"
    options = {"check_files": False, "seed": 3}
    parts = [
        [study.id for study in open_studies(spec, split=split, **options)]
        for split in ("train", "val", "test")
    ]
    assert all(parts)
    everything = [study.id for study in open_studies(spec, **options)]
    assert sorted(study for part in parts for study in part) == sorted(everything)
    assert everything == [f"CXR{uid}" for uid in range(1, 41)]


def test_odd_rows_of_iu(tmp_path: Path) -> None:
    rows = [*trees.IU_ROWS, trees.IU_ROWS[0], (3, *[""] * 5, "Clear.", "")]
    files = [*trees.IU_PROJECTIONS, trees.IU_PROJECTIONS[0], (77, "77.png", "Frontal")]
    studies = open_studies(f"iu-xray:{iu_kaggle(tmp_path, rows, files)}").read()
    assert studies.summary.left_out["without an image"] == 1
    assert studies.summary.records == {
        "repeated records of one image": 1,
        "repeated records of one report": 1,
        "images without a report": 1,
    }
    for bad_rows, bad_files, message in (
        ([("x", *[""] * 7)], files, r"reports\.csv: row 2, column 'uid': is a text of 1 character"),
        ([*rows, (1, *[""] * 7)], files, r"row 7, column 'uid': 1 comes twice, with different"),
        (rows, [(1, "../a.png", "Frontal")], r"projections\.csv: row 2, column 'filename'"),
    ):
        iu_kaggle(tmp_path, bad_rows, bad_files)
        with pytest.raises(DiveError, match=message):
            open_studies(f"iu-xray:{tmp_path}").read()


def test_iu_that_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(DiveError, match=r"has no reports, want indiana_reports\.csv with"):
        open_studies(f"iu-xray:{tmp_path}")
    root = iu_xml(tmp_path)
    path = root / "ecgen-radiology" / "1.xml"
    whole = path.read_text()
    path.write_text(whole[:100])
    with pytest.raises(DiveError, match=r"1\.xml: is not XML \(.*is the download complete"):
        open_studies(f"iu-xray:{root}").read()
    skipped = Skipped()
    studies = open_studies(f"iu-xray:{root}", on_error="skip", skipped=skipped).read()
    assert [study.id for study in studies] == ["CXR2"]
    assert [entry["id"] for entry in skipped] == ["CXR1"]
    assert balanced(studies.summary)
    path.write_text('<!DOCTYPE x [<!ENTITY a "aaaa">]>' + whole.partition("?>")[2])
    with pytest.raises(DiveError, match="declares entities"):
        open_studies(f"iu-xray:{root}").read()


# R2Gen


def test_r2gen_of_iu_shows_both_images(tmp_path: Path) -> None:
    path = r2gen_iu(tmp_path)
    studies = open_studies(f"r2gen:{path}")
    assert [study.id for study in studies] == ["CXR2384_IM-0942", "CXR9_IM-1"]
    folder = tmp_path / "images" / "CXR2384_IM-0942"
    assert studies[0].images == (folder / "0.png", folder / "1.png")
    assert studies[0].findings == "The heart size is normal."
    assert studies[0].patient is None
    assert [study.split for study in studies] == ["train", "test"]
    assert len(open_studies(f"r2gen:{tmp_path}", split="train")) == 1
    assert len(open_studies(f"r2gen:{path}", max_images=1)[0].images) == 1
    with pytest.raises(DiveError, match="2 in another split than val"):
        len(open_studies(f"r2gen:{path}", split="validation"))


def test_r2gen_of_mimic_has_one_study_an_image(tmp_path: Path) -> None:
    studies = open_studies(f"r2gen:{r2gen_mimic(tmp_path)}")
    assert [len(study.images) for study in studies] == [1, 1, 1]
    assert {study.patient for study in studies} == {"p10000001"}
    assert len(open_studies(f"r2gen:{tmp_path}", split="validate")) == 1
    assert "a study occurs as often as it has images" in str(studies.summary)
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    with pytest.raises(DiveError, match=r"annotation\.json: train\[0\]: study .* no image file"):
        len(open_studies(f"r2gen:{tmp_path}"))
    assert len(open_studies(f"r2gen:{tmp_path}", images=tmp_path / "elsewhere")) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"report": ""}, r"train\[1\]: 'report' is empty, want a string"),
        ({"image_path": "a.png"}, r"train\[1\]: 'image_path' is a string, want a list of paths"),
        ({"image_path": ["../../x.png"]}, r"train\[1\]: 'image_path' has another item"),
        ({"split": "test"}, r"train\[1\]: 'split' is another in the list 'train'"),
        ({"id": trees.dicom_id(1)}, r"train\[1\]: id .* is train\[0\]'s"),
    ],
)
def test_bad_items_of_r2gen(tmp_path: Path, change: dict, message: str) -> None:
    path = r2gen_mimic(tmp_path)
    items = json.loads(path.read_text())
    items["train"][1] |= change
    path.write_text(json.dumps(items))
    with pytest.raises(DiveError, match=message):
        len(open_studies(f"r2gen:{path}"))
    skipped = Skipped()
    studies = open_studies(f"r2gen:{path}", on_error="skip", skipped=skipped)
    assert (len(studies), len(skipped)) == (2, 1)


def test_what_is_no_annotation_file(tmp_path: Path) -> None:
    path = r2gen_iu(tmp_path)
    with pytest.raises(DiveError, match="has findings only, and the target is 'both'"):
        open_studies(f"r2gen:{path}", target="both")
    with pytest.raises(DiveError, match="knows no views"):
        open_studies(f"r2gen:{path}", views="frontal")
    for content, message in (
        ('{"train": [', "line 1, column 12: is not JSON"),
        ('{"a": []}', "has a, want lists train, val and test"),
        ('{"train": {}, "val": []}', "'train' is no list"),
        ('{"train": []}', "has no usable item"),
    ):
        path.write_text(content)
        with pytest.raises(DiveError, match=message):
            len(open_studies(f"r2gen:{path}"))
    with pytest.raises(DiveError, match="there is no file"):
        open_studies(f"r2gen:{tmp_path / 'none.json'}")


# JSON lines and dataset objects


def test_json_lines_with_filters(tmp_path: Path) -> None:
    film(tmp_path / "a.png")
    rows = [
        {"id": name, "images": ["a.png", "a.png"], "findings": text, "split": split}
        for name, text, split in (
            ("a", "Clear.\nNormal.", "train"),
            ("b", "Unchanged. Clear lungs.", "val"),
            ("c", "Unchanged.", "val"),
        )
    ]
    path = tmp_path / "studies.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [s.findings for s in open_studies(path)] == [
        "Clear.\nNormal.",
        *(r["findings"] for r in rows[1:]),
    ]
    studies = open_studies(str(path), split="validate", drop_comparisons=True, max_images=1)
    assert [(s.id, s.findings, len(s.images)) for s in studies] == [("b", "Clear lungs.", 1)]
    assert studies.summary.left_out == {
        "in another split than validation": 1,
        "with nothing but comparisons in findings": 1,
    }
    assert balanced(studies.summary)
    with pytest.raises(DiveError, match="'impression' is absent"):
        len(open_studies(path, target="impression"))
    del rows[1]["split"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DiveError, match="has no 'split', and split is 'test'"):
        len(open_studies(path, split="test"))


class Table:
    """Rows by number that count how often an image is fetched, as `datasets.Dataset` is used."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


def test_dataset_objects(tmp_path: Path) -> None:
    path = film(tmp_path / "a.png")
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": None}, "findings": "One.", "study_id": 5},
        {"image": Image.new("L", (8, 6), 90), "findings": "Two.", "study_id": 6},
        {"image": str(path), "findings": "Three.", "study_id": 7},
        {"image": [path.read_bytes(), str(path)], "findings": "", "study_id": 8},
    ]
    studies = open_studies(Table(rows))
    assert [(study.id, study.findings) for study in studies] == [
        ("5", "One."),
        ("6", "Two."),
        ("7", "Three."),
    ]
    assert studies.summary.left_out == {"without a section findings": 1}
    loaded = [study.load_images()[0].getpixel((0, 0)) for study in studies]
    assert loaded == [(90, 90, 90)] * 3
    assert str(studies[0].images[0]) == "<Table>: row 0, column 'image'"
    rows[0]["image"] = None  # nothing was kept: it is asked for again
    with pytest.raises(DiveError, match="row 0, column 'image'"):
        studies[0].load_images()
    stream = open_studies(iter(rows[1:]))
    assert [study.load_images()[0].size for study in stream] == [(8, 6), (8, 6)]
    assert "images stay in memory" in str(stream.summary)


def test_splits_and_columns_of_dataset_objects() -> None:
    image = Image.new("L", (8, 6))
    parts = {
        "train": [{"scan": image, "report": "A."}],
        "validation": [{"scan": image, "report": "B."}, {"scan": image, "report": "C."}],
    }
    columns = {"images": "scan", "findings": "report"}
    studies = open_studies(parts, split="val", columns=columns)
    assert [(s.id, s.findings) for s in studies] == [("validation-0", "B."), ("validation-1", "C.")]
    assert len(open_studies(parts, columns=columns)) == 3
    with pytest.raises(DiveError, match=r"row 0: has no column of images .*it has scan, report"):
        len(open_studies(parts))
    with pytest.raises(DiveError, match="has no column 'text'; it has scan, report"):
        len(open_studies(parts, columns={"images": "scan", "findings": "text"}))
    with pytest.raises(DiveError, match="columns names view, want some of id, images"):
        open_studies(parts, columns={"view": "x"})
    with pytest.raises(DiveError, match="row 0: is a int, want a dict"):
        len(open_studies([1]))
    with pytest.raises(DiveError, match="column 'findings' is a int, want a string"):
        len(open_studies([{"image": image, "findings": 3}]))
    skipped = Skipped()
    bad = [{"image": image, "findings": "A.", "id": 1}] * 2
    assert len(open_studies(bad, on_error="skip", skipped=skipped)) == 1
    assert "id '1' was used already" in skipped.entries[0]["reason"]


def test_a_real_dataset_object(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = str(film(tmp_path / "a.png"))
    features = datasets.Features({"image": datasets.Image(), "findings": datasets.Value("string")})
    rows = datasets.Dataset.from_dict(
        {"image": [path, path], "findings": ["A.", "B."]}, features=features
    )
    studies = open_studies(datasets.DatasetDict({"test": rows}), split="test")
    assert [(study.id, study.findings) for study in studies] == [("test-0", "A."), ("test-1", "B.")]
    assert studies[1].load_images()[0].getpixel((0, 0)) == (90, 90, 90)
    for given in (rows, rows.to_iterable_dataset()):
        study = open_studies(given)[0]
        assert isinstance(study.images[0], LazyImage)
        assert study.load_images()[0].getpixel((0, 0)) == (90, 90, 90)
