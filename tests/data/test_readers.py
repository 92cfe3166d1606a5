"""MIMIC-CXR through `open_studies`: policy, filters, counts, and damaged downloads."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import data_trees as trees
import pytest
from data_trees import Mimic, balanced, dicom_id, film, write_csv
from typer.testing import CliRunner

from dive.cli import app
from dive.data import Skipped, Studies, open_studies
from dive.errors import DiveError


@pytest.fixture
def mimic(tmp_path: Path) -> Mimic:
    return Mimic(tmp_path)


def read(mimic: Mimic, **options: object) -> Studies:
    return open_studies(f"mimic-cxr:{mimic.root}", **options).read()


def test_the_default_is_one_frontal_image_a_study_with_findings(mimic: Mimic) -> None:
    studies = read(mimic)
    first, second = studies
    assert first.id == "s50000001"
    assert first.patient == "p10000001"
    assert first.images == (mimic.image(10000001, 50000001, 1),)
    assert first.views == ("PA",)
    assert first.split == "train"
    assert first.indication == "Cough."
    assert first.findings == (
        "The heart is normal in size. Compared to ___, the lungs are clearer."
    )
    assert first.impression == "Normal."
    assert first.labels == {"Atelectasis": 1.0, "Cardiomegaly": -1.0, "Consolidation": 0.0}
    assert first.source == f"{mimic.table('metadata').name}: row 2"
    assert second.images == (mimic.image(10000001, 50000002, 3),)  # PA before AP
    assert second.findings == "Small left effusion."
    assert second.labels is None

    summary = studies.summary
    assert balanced(summary)
    assert summary.left_out == {
        "without an image of the wanted views": 1,
        "without a section findings": 1,
        "without a section findings, but with a last paragraph": 1,
    }
    assert summary.images_left_out == {
        "of other views": 1,
        "beyond 1 per study": 1,
        "of studies left out": 3,
    }
    said = str(summary)
    for words in (
        "2 studies with 2 images kept of 5 studies with 7 images",
        "one image per study (frontal, PA before AP before lateral)",
        "studies without a section findings are left out",
        "placeholders (___, XXXX) are kept",
        "compare with an earlier examination are kept",
        "without its 54 hand-made exceptions",
        f"read: {mimic.table('metadata').name}",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"target": "impression"}, {50000001: [1], 50000004: [6]}),
        ({"target": "both"}, {50000001: [1]}),
        ({"target": None}, {50000001: [1], 50000002: [3], 50000004: [6], 50000005: [7]}),
        ({"last_paragraph": True}, {50000001: [1], 50000002: [3], 50000005: [7]}),
        ({"views": "all"}, {50000001: [1, 2], 50000002: [3, 4], 50000003: [5]}),
        ({"views": "all", "max_images": 1}, {50000001: [1], 50000002: [3], 50000003: [5]}),
        ({"views": "lateral"}, {50000001: [2], 50000003: [5]}),
        ({"views": "ap"}, {50000002: [4]}),
        ({"views": ["LL", "AP"]}, {50000002: [4], 50000003: [5]}),
        ({"max_images": 2}, {50000001: [1], 50000002: [3, 4]}),
        ({"split": "validate", "views": "all"}, {50000003: [5]}),
        ({"split": "val", "views": "all"}, {50000003: [5]}),
        ({"split": "Validation", "views": "all"}, {50000003: [5]}),
        ({"split": "test", "target": "impression"}, {50000004: [6]}),
        ({"min_words": 4}, {50000001: [1]}),
        ({"strip_placeholders": True, "min_words": 13}, None),
        ({"min_words": 13}, {50000001: [1]}),
        ({"drop_comparisons": True, "min_words": 7}, None),
    ],
)
def test_filters(mimic: Mimic, options: dict, kept: dict[int, list[int]] | None) -> None:
    if kept is None:
        with pytest.raises(DiveError, match="no study to work with; 0 of 5 studies kept"):
            read(mimic, **options)
        return
    studies = read(mimic, **options)
    found = {int(study.id[1:]): [path.stem for path in study.images] for study in studies}
    assert found == {study: [dicom_id(image) for image in kept[study]] for study in kept}
    assert list(found) == sorted(found)
    assert balanced(studies.summary)


def test_text_is_changed_as_asked(mimic: Mimic) -> None:
    study = read(mimic, drop_comparisons=True)[0]
    assert study.findings == "The heart is normal in size."
    study = read(mimic, strip_placeholders=True)[0]
    assert study.findings == "The heart is normal in size. Compared to, the lungs are clearer."


def test_plain_tables_with_windows_line_ends_and_a_mark_read_the_same(tmp_path: Path) -> None:
    packed = read(Mimic(tmp_path / "a"))
    plain = Mimic(tmp_path / "b", suffix=".csv").write("\r\n")
    for name in ("metadata", "split", "chexpert"):
        data = plain.table(name).read_bytes()
        plain.table(name).write_bytes(b"\xef\xbb\xbf" + data + b"\r\n")
    studies = read(plain)
    assert [s.findings for s in studies] == [s.findings for s in packed]
    assert [s.labels for s in studies] == [s.labels for s in packed]


def test_images_and_reports_under_two_roots(mimic: Mimic, tmp_path: Path) -> None:
    other = tmp_path / "texts" / "mimic-cxr"
    for text in list(mimic.root.glob("files/*/*/*.txt")):
        target = other / text.relative_to(mimic.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        text.rename(target)
    with pytest.raises(DiveError, match=r"study 's50000001': there is no report file"):
        read(mimic)
    assert len(read(mimic, reports=other)) == 2
    assert len(open_studies(f"mimic-cxr:{other}", images=mimic.root)) == 2
    # both under one folder, as wget leaves them
    assert len(open_studies(f"mimic-cxr:{tmp_path / 'texts'}", images=mimic.root)) == 2
    # or the folder `files` itself
    assert len(open_studies(f"mimic-cxr:{mimic.root / 'files'}", reports=other)) == 2


def test_reports_are_read_out_of_the_archive_as_downloaded(mimic: Mimic, tmp_path: Path) -> None:
    wanted = [study.findings for study in read(mimic)]
    archive = mimic.zip_reports(tmp_path / "elsewhere" / "mimic-cxr-reports.zip")
    assert [study.findings for study in read(mimic, reports=archive)] == wanted
    archive.rename(mimic.root / archive.name)
    assert [study.findings for study in read(mimic)] == wanted

    archive = mimic.root / archive.name
    data = bytearray(archive.read_bytes())
    data[60:90] = b"\0" * 30  # within the first report
    archive.write_bytes(data)
    with pytest.raises(DiveError, match=r"the report of study 's50000001' is damaged"):
        read(mimic)
    archive.write_bytes(data[:200])
    with pytest.raises(DiveError, match=r"mimic-cxr-reports\.zip: is not a complete zip archive"):
        read(mimic)


def test_a_bomb_in_the_archive_is_not_unpacked(mimic: Mimic) -> None:
    mimic.report(10000001, 50000001).write_bytes(b"x" * (2 << 20))
    with pytest.raises(
        DiveError, match=r"study 's50000001': the report file has more than 1,048,576 bytes"
    ):
        read(mimic)
    mimic.zip_reports(mimic.root / "mimic-cxr-reports.zip")
    with pytest.raises(
        DiveError, match=r"the report of study 's50000001' has more than 1,048,576 bytes"
    ):
        read(mimic)


def test_the_sectioned_csv_is_preferred_and_may_be_refused(mimic: Mimic, tmp_path: Path) -> None:
    path = mimic.write_sectioned(
        [("s50000001", "I.", "From the\n csv.", "", ""), ("s50000005", "", "", "Last words.", "")]
    )
    studies = read(mimic)
    assert [study.findings for study in studies] == ["From the csv."]
    assert studies[0].indication is None
    assert studies.summary.left_out["without a record in mimic_cxr_sectioned.csv"] == 2
    assert "sections from mimic_cxr_sectioned.csv" in str(studies.summary)
    assert "no column 'indication'" in str(studies.summary)
    assert balanced(studies.summary)
    assert [s.findings for s in read(mimic, last_paragraph=True)] == [
        "From the csv.",
        "Last words.",
    ]
    assert len(read(mimic, sections="rules")) == 2
    moved = path.rename(tmp_path / "other.csv")
    assert [study.findings for study in read(mimic, sections=moved)] == ["From the csv."]
    with pytest.raises(DiveError, match=r"there is no file .*none\.csv"):
        read(mimic, sections=tmp_path / "none.csv")


def test_dicom_in_place_of_jpeg_and_both_mixed(mimic: Mimic) -> None:
    jpeg = mimic.image(10000001, 50000001, 1)
    dicom = jpeg.rename(jpeg.with_suffix(".dcm"))
    assert read(mimic)[0].images == (dicom,)
    for path in list(mimic.root.glob("files/*/*/*/*.jpg")):
        path.rename(path.with_suffix(".dcm"))
    studies = read(mimic)
    assert [study.images[0].suffix for study in studies] == [".dcm", ".dcm"]
    assert [s.images[0].suffix for s in read(mimic, check_files=False)] == [".dcm", ".dcm"]


def test_a_repeated_row_is_counted_and_a_contradicting_one_is_bad(mimic: Mimic) -> None:
    mimic.metadata.append(mimic.metadata[0])
    mimic.split.append(mimic.split[0])
    studies = read(mimic.write())
    assert len(studies) == 2
    assert studies.summary.records == {"repeated records of one image": 1}

    row = list(mimic.metadata[0])
    row[2] = 50000003
    mimic.metadata.append(tuple(row))
    with pytest.raises(DiveError, match=r"row 10, column 'dicom_id': is that of study 50000001"):
        read(mimic.write())


@pytest.mark.parametrize(
    ("table", "cells", "message"),
    [
        (
            "metadata",
            {0: "../../secret"},
            "metadata{0}: row 3, column 'dicom_id': is a text of 12 characters",
        ),
        (
            "metadata",
            {1: "10000001.0"},
            "metadata{0}: row 3, column 'subject_id': is a text of 10 characters",
        ),
        (
            "metadata",
            {2: ""},
            "metadata{0}: row 3, column 'study_id': is blank, want eight digits",
        ),
        (
            "metadata",
            {1: 10000009},
            "metadata{0}: row 3, column 'subject_id': differs from that of study",
        ),
        (
            "split",
            {3: "dev"},
            "split{0}: row 3, column 'split': is a text of 3 characters, want one of train",
        ),
        ("split", {3: "test"}, "split{0}: row 3, column 'split': is 'test', study 50000001 was"),
    ],
)
def test_a_bad_cell_is_named_by_file_row_and_column(
    mimic: Mimic, table: str, cells: dict[int, object], message: str
) -> None:
    rows = getattr(mimic, table)
    row = list(rows[1])
    for place, value in cells.items():
        row[place] = value
    rows[1] = tuple(row)
    mimic.write()
    with pytest.raises(DiveError) as caught:
        read(mimic)
    assert message.format(".csv.gz") in str(caught.value)
    skipped = Skipped()
    studies = read(mimic, on_error="skip", skipped=skipped)
    assert [study.id for study in studies] == ["s50000001", "s50000002"]
    assert len(skipped) == 1
    assert message.format(".csv.gz") in skipped.entries[0]["reason"]
    assert studies.summary.records["bad records"] == 1


def test_a_bad_label_is_named(mimic: Mimic) -> None:
    mimic.labels = [(10000001, 50000001, "yes", "1.0", *[""] * 12)]
    mimic.write()
    with pytest.raises(
        DiveError, match=r"chexpert.csv.gz: row 2, column 'Atelectasis': is a text of 3 characters"
    ):
        read(mimic)
    skipped = Skipped()
    assert read(mimic, on_error="skip", skipped=skipped)[0].labels == {"Cardiomegaly": 1.0}
    assert len(skipped) == 1
    assert read(mimic, labels=None)[0].labels is None
    with pytest.raises(DiveError, match="labels is 'human', want None, auto, chexpert"):
        read(mimic, labels="human")
    with pytest.raises(DiveError, match="has no table mimic-cxr-.*-negbio"):
        read(mimic, labels="negbio")


def test_a_half_downloaded_tree_fails_or_is_counted(mimic: Mimic) -> None:
    os.unlink(mimic.image(10000001, 50000002, 3))  # its AP film is there
    os.unlink(mimic.image(10000001, 50000001, 1))
    with pytest.raises(
        DiveError, match=r"row 2: study 's50000001': there is no image file \(1 of 1"
    ):
        read(mimic)
    skipped = Skipped()
    studies = read(mimic, on_error="skip", skipped=skipped)
    assert [study.images for study in studies] == [(mimic.image(10000001, 50000002, 4),)]
    assert [entry["id"] for entry in skipped] == ["s50000001", "s50000002"]
    assert studies.summary.failed == 1
    assert studies.summary.images_left_out["without a file"] == 1
    assert balanced(studies.summary)
    assert len(read(mimic, check_files=False)) == 2


def test_a_missing_or_unreadable_report_fails_or_is_counted(mimic: Mimic) -> None:
    os.unlink(mimic.report(10000001, 50000001))
    mimic.report(10000001, 50000002).write_bytes(b"x\n FINDINGS: caf\xe9\n")
    with pytest.raises(DiveError, match=r"study 's50000001': there is no report file"):
        read(mimic)
    skipped = Skipped()
    studies = read(mimic, views="all", on_error="skip", skipped=skipped)
    assert [study.id for study in studies] == ["s50000003"]
    assert (
        "study 's50000002': the report file: line 2 is not UTF-8 (byte 0xe9)"
        in skipped.entries[1]["reason"]
    )
    assert studies.summary.failed == 2
    assert balanced(studies.summary)
    assert len(read(mimic, target=None, views="all")) == 5


def test_a_study_that_the_split_lacks(mimic: Mimic) -> None:
    mimic.split.pop()
    mimic.write()
    with pytest.raises(DiveError, match=r"row 8: study 50000005 has no record in .*split"):
        read(mimic)
    skipped = Skipped()
    assert len(read(mimic, on_error="skip", skipped=skipped)) == 2
    assert skipped.entries[0]["id"] == "s50000005"


def test_a_damaged_gzip_fails_whatever_is_asked(mimic: Mimic) -> None:
    path = mimic.table("metadata")
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[: len(whole) // 2], b"no gzip at all"):
        path.write_bytes(damaged)
        for on_error in ("fail", "skip"):
            with pytest.raises(DiveError, match=r"metadata\.csv\.gz: is damaged behind row \d+ \("):
                read(mimic, on_error=on_error)


def test_a_damaged_optional_table_can_be_skipped(mimic: Mimic) -> None:
    path = mimic.table("chexpert")
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DiveError, match=r"chexpert\.csv\.gz: is damaged behind row"):
        read(mimic)
    skipped = Skipped()
    assert len(read(mimic, on_error="skip", skipped=skipped)) == 2
    assert len(skipped) == 1


def test_changed_columns_and_missing_tables_are_named_at_once(mimic: Mimic) -> None:
    open_studies(f"mimic-cxr:{mimic.root}")
    header = [name.replace("study_id", "StudyID") for name in trees.METADATA]
    write_csv(mimic.table("metadata"), header, mimic.metadata)
    with pytest.raises(DiveError, match=r"row 1: has no column 'study_id'; the columns are dicom"):
        open_studies(f"mimic-cxr:{mimic.root}")
    os.unlink(mimic.table("metadata"))
    with pytest.raises(DiveError, match=r"split\.csv\.gz: has no view positions; put"):
        open_studies(f"mimic-cxr:{mimic.root}")
    assert len(read(mimic, views="all")) == 3
    os.unlink(mimic.table("split"))
    with pytest.raises(DiveError, match=r"has no table of images, want mimic-cxr-2\.0\.0-metadata"):
        open_studies(f"mimic-cxr:{mimic.root}")
    mimic.write()
    os.unlink(mimic.table("split"))
    with pytest.raises(DiveError, match=r"has no mimic-cxr-2\.0\.0-split.*split is 'test'"):
        open_studies(f"mimic-cxr:{mimic.root}", split="test")
    assert "training and test studies are not separated" in str(read(mimic).summary)


def test_wrong_roots_and_options(mimic: Mimic, tmp_path: Path) -> None:
    for spec, message in (
        (f"mimic-cxr:{tmp_path / 'none'}", "none does not exist, want the folder of MIMIC-CXR"),
        (f"mimic-cxr:{mimic.table('split')}", "is a file, want the folder"),
        (f"mimic-cxr:{film(tmp_path / 'x' / 'a.png').parent}", "has no table of images"),
        ("mimic-cxr:", "names no path"),
        ("mimic:/data", "is not known, want mimic-cxr:PATH, chexpert-plus:PATH"),
        (str(mimic.root), "is not known"),
        ("studies.jsonl", r"there is no file studies\.jsonl"),
        (7, "cannot read studies from 7"),
    ):
        with pytest.raises(DiveError, match=message):
            open_studies(spec)
    for options, message in (
        ({"target": "report"}, "target is 'report'"),
        ({"split": "dev2"}, "split is 'dev2', want one of train"),
        ({"min_words": -1}, "min_words is -1"),
        ({"max_images": 0}, "max_images is 0"),
        ({"views": ""}, "views is ''"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
    ):
        with pytest.raises(DiveError, match=message):
            read(mimic, **options)
    for path in list(mimic.root.glob("files/*")):
        path.rename(tmp_path / f"not-{path.name}")
    with pytest.raises(DiveError, match="has no folder files with p10 ... p19 in it"):
        read(mimic)


def test_studies_come_one_by_one_and_stay(mimic: Mimic) -> None:
    os.unlink(mimic.report(10000001, 50000002))
    studies = open_studies(f"mimic-cxr:{mimic.root}")
    assert studies.summary.studies == 0  # no row was read yet
    assert bool(studies)
    assert next(iter(studies)).id == "s50000001"
    assert studies[0] is next(iter(studies))
    assert not studies.summary.complete
    assert "so far" in str(studies.summary)
    for _ in range(2):  # the fault does not go away by asking again
        with pytest.raises(DiveError, match="s50000002"):
            len(studies)
    whole = open_studies(f"mimic-cxr:{mimic.root}", on_error="skip", views="all")
    assert [study.id for study in whole] == [study.id for study in whole[:]]
    assert whole[-1].id == "s50000003"
    with pytest.raises(IndexError):
        whole[2]


def test_a_table_that_is_a_bomb_is_refused(mimic: Mimic, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(b"dicom_id,subject_id,study_id,ViewPosition\n" + b"x" * (3 << 20))
    mimic.table("metadata").write_bytes(bomb)
    with pytest.raises(DiveError, match="has a line of more than 1,048,576 bytes"):
        read(mimic)
    mimic.write()
    monkeypatch.setattr("dive.data.datasets.tables.MAX_TABLE_BYTES", 300)
    with pytest.raises(DiveError, match="more than 300 in all"):
        read(mimic)


def test_reading_needs_neither_torch_nor_pydicom_nor_datasets(mimic: Mimic) -> None:
    program = (
        "import sys; from dive.data import open_studies\n"
        f"assert len(open_studies({f'mimic-cxr:{mimic.root}'!r})) == 2\n"
        "print([name for name in ('torch', 'pydicom', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_a_dataset_is_looked_at_and_written_as_json_lines(mimic: Mimic, tmp_path: Path) -> None:
    os.unlink(mimic.report(10000001, 50000002))
    out = tmp_path / "out" / "studies.jsonl"
    spec = f"mimic-cxr:{mimic.root}"
    words = ["inspect", "dataset", spec]
    with pytest.raises(DiveError, match="50000002"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    words += ["--on-error", "skip", "--out", str(out)]
    said = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert "1 studies with 1 images kept of 5 studies with 7 images" in said
    assert "skipped: " in said and "study 's50000002'" in said
    assert "is subject to the agreement of its source" in said
    (again,) = open_studies(out, split="train")
    (study,) = read(mimic, on_error="skip")
    for name in ("id", "images", "patient", "indication", "findings", "impression", "split"):
        assert getattr(again, name) == getattr(study, name)


def test_findings_within_an_indication_do_not_go_into_the_prompt(tmp_path: Path) -> None:
    mimic = Mimic(tmp_path)
    mimic.report(10000001, 50000001).write_text(
        " FINAL REPORT\n HISTORY:  Cough. Findings: Left effusion.\n \n FINDINGS:  Left effusion.\n"
    )
    studies = open_studies(f"mimic-cxr:{tmp_path}", split="train").read()
    assert (studies[0].indication, studies[0].findings) == ("Cough.", "Left effusion.")
    assert studies.summary.records["indications that contain findings, cut before these"] == 1
