"""Studies from JSON lines, images to RGB, and files that survive an interruption."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dive.data import Skipped, Study, read_studies
from dive.data.images.load import load_rgb
from dive.errors import DiveError
from dive.files.atomic import write_text
from dive.files.json_lines import JsonlWriter, write_jsonl

GOOD = {"id": "a", "images": ["a.png"], "findings": "Clear.", "impression": "Normal."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("L", (12, 10), 90).save(tmp_path / name)
    return tmp_path


def write(folder: Path, *lines: dict | str | bytes) -> Path:
    raw = [
        line
        if isinstance(line, bytes)
        else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path = folder / "studies.jsonl"
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


# reading


def test_a_study_has_what_its_line_says(folder: Path) -> None:
    path = write(
        folder,
        {**GOOD, "patient": 7, "indication": "Cough.", "view": "ap"},
        {"id": 2, "images": ["b.png", "a.png"], "findings": None},
    )
    first, second = read_studies(path)
    assert first == Study(
        id="a",
        images=(folder / "a.png",),
        patient="7",
        indication="Cough.",
        findings="Clear.",
        impression="Normal.",
        source="studies.jsonl:1",
    )
    assert second.id == "2"
    assert second.images == (folder / "b.png", folder / "a.png")
    assert second.findings is None
    assert first.report("both") == "Findings: Clear. Impression: Normal."
    assert first.report("impression") == "Normal."


def test_mark_windows_line_ends_blank_lines_and_a_missing_last_line_end_are_fine(
    folder: Path,
) -> None:
    path = folder / "studies.jsonl"
    text = json.dumps(GOOD) + "\r\n\r\n   \r\n" + json.dumps({**GOOD, "id": "b", "findings": "Ä"})
    path.write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8"))
    studies = read_studies(path, target="findings")
    assert [study.id for study in studies] == ["a", "b"]
    assert studies[1].source == "studies.jsonl:4"
    assert studies[1].findings == "Ä"


BAD_LINES = {
    "bad JSON": ('{"id": "x", ', "is not JSON"),
    "two objects": (json.dumps(GOOD) + json.dumps(GOOD), "is not JSON"),
    "a list": ("[1, 2]", "is a list, want one JSON object"),
    "a number": ("3", "is a number"),
    "not UTF-8": (b'{"id": "caf\xe9"}', "is not UTF-8 (byte 0xe9 at column 12)"),
    "half a character": ('{"id": "x", "findings": "\\ud800"}', "has a lone surrogate"),
    "too many digits": (
        '{"id": ' + "1" * 5000 + "}",
        "has a whole number of thousands of digits",
    ),
    "image with a long name": ({"id": "x", "images": ["n" * 5000]}, "there is no image file"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "key twice": ('{"id": "x", "id": "y", "images": ["b.png"]}', "has the key id twice"),
    "no id": ({"images": ["b.png"]}, '"id" is missing; the line has the keys images'),
    "blank id": ({**GOOD, "id": " "}, "'id' is blank, want a string"),
    "id of another kind": ({**GOOD, "id": ["x"]}, "'id' is a list, want a string"),
    "duplicate id": ({**GOOD, "id": "first"}, "id 'first' was used in line 1 already"),
    "no images": (
        {"id": "x", "findings": "Clear."},
        "study 'x': \"images\" is missing (the line has",
    ),
    "images empty": ({"id": "x", "images": []}, "is an empty list, want"),
    "images a text": ({"id": "x", "images": "b.png"}, "is a string, want a list"),
    "image a number": ({"id": "x", "images": [3]}, "has a number in it, want a list"),
    "image missing": ({"id": "x", "images": ["c.png"]}, "there is no image file"),
    "image a folder": ({"id": "x", "images": ["."]}, "there is no image file"),
    "findings absent": ({"id": "x", "images": ["b.png"]}, "'findings' is absent"),
    "findings blank": ({"id": "x", "images": ["b.png"], "findings": " \n"}, "'findings' is empty"),
    "findings a list": (
        {"id": "x", "images": ["b.png"], "findings": ["a"]},
        "'findings' is a list, want a string",
    ),
    "patient blank": (
        {**GOOD, "id": "x", "patient": " "},
        "'patient' is blank, want a string that is not",
    ),
    "patient a truth value": (
        {**GOOD, "id": "x", "patient": True},
        "'patient' is a boolean, want a string",
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_one_error_with_file_and_line_or_one_entry(folder: Path, name: str) -> None:
    line, message = BAD_LINES[name]
    path = write(folder, {**GOOD, "id": "first"}, "", line, {**GOOD, "id": "last"})
    with pytest.raises(DiveError) as caught:
        read_studies(path, target="findings")
    assert str(caught.value).startswith("studies.jsonl:3: ")
    assert message in str(caught.value)

    skipped = Skipped()
    studies = read_studies(path, target="findings", on_error="skip", skipped=skipped)
    assert [study.id for study in studies] == ["first", "last"]
    assert [entry["source"] for entry in skipped] == ["studies.jsonl:3"]
    assert message in skipped.entries[0]["reason"]


def test_files_that_are_no_files_of_studies(folder: Path) -> None:
    with pytest.raises(DiveError, match=r"there is no file .*none\.jsonl"):
        read_studies(folder / "none.jsonl")
    with pytest.raises(DiveError, match="cannot read"):
        read_studies(folder)
    with pytest.raises(DiveError, match="no study to work with; it has no lines"):
        read_studies(write(folder, ""))
    with pytest.raises(DiveError, match="all 2 lines were skipped"):
        read_studies(write(folder, "{", "}"), on_error="skip")
    (folder / "wide.jsonl").write_text(json.dumps(GOOD), encoding="utf-16")
    with pytest.raises(DiveError, match=r"wide\.jsonl:1: is UTF-16, want UTF-8"):
        read_studies(folder / "wide.jsonl")


def test_options_that_do_not_exist(folder: Path) -> None:
    path = write(folder, GOOD)
    with pytest.raises(DiveError, match="target is 'report'"):
        read_studies(path, target="report")
    with pytest.raises(DiveError, match="on_error is 'ignore'"):
        read_studies(path, on_error="ignore")


def test_both_needs_both(folder: Path) -> None:
    study = Study(id="x", images=(), findings="Clear.", source="f.jsonl:9")
    with pytest.raises(DiveError, match=r"f\.jsonl:9: study 'x': 'impression' is absent"):
        study.report("both")


def test_skipped_is_written_as_lines(tmp_path: Path) -> None:
    skipped = Skipped()
    skipped.add("a", "f:1", DiveError("why"))
    skipped.add(None, "f:2", "because")
    skipped.write(tmp_path / "new" / "skipped.jsonl")
    lines = (tmp_path / "new" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "a", "source": "f:1", "reason": "why"},
        {"id": None, "source": "f:2", "reason": "because"},
    ]
    assert len(skipped) == 2


# images


def photograph(size: tuple[int, int] = (64, 48)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "tif"])
def test_a_truncated_image_is_an_error_when_it_is_loaded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"film.{kind}"
    photograph().save(path)
    data = path.read_bytes()
    whole = Study(id="x", images=(path,), source="f.jsonl:3")
    assert whole.load_images()[0].size == (64, 48)
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DiveError) as caught:
        whole.load_images()
    assert str(caught.value).startswith("f.jsonl:3: study 'x': cannot read the image (1 of 1): ")


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("text.png", "empty.jpg", "."):
        with pytest.raises(DiveError, match="cannot read the image"):
            load_rgb(tmp_path / name)
    with pytest.raises(DiveError, match="there is no image file"):
        load_rgb(tmp_path / "gone.png")


def test_several_frames_are_not_one_image(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (0, 9)]
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(DiveError, match="holds 2 frames"):
        load_rgb(tmp_path / "two.tif")


@pytest.mark.parametrize(
    ("largest", "scale"), [(255, 1.0), (1023, 255 / 1023), (4095, 255 / 4095), (65535, 255 / 65535)]
)
def test_16_bit_grey_is_scaled_by_its_depth(tmp_path: Path, largest: int, scale: float) -> None:
    values = np.linspace(0, largest, 32 * 24).astype(np.uint16).reshape(24, 32)
    Image.fromarray(values).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as saved:
        assert saved.mode.startswith("I")
    image = load_rgb(tmp_path / "deep.png")
    assert image.mode == "RGB"
    wanted = np.rint(values * scale).astype(np.uint8)
    assert np.array_equal(np.asarray(image), np.stack([wanted] * 3, axis=-1))


def test_float_grey_is_stretched_and_must_be_finite(tmp_path: Path) -> None:
    values = np.array([[-1.0, 0.0], [1.0, 3.0]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "float.tif")
    assert np.asarray(load_rgb(tmp_path / "float.tif"))[..., 0].tolist() == [[0, 64], [128, 255]]
    assert np.asarray(load_rgb(Image.fromarray(values * 0))).max() == 0
    with pytest.raises(DiveError, match="not finite"):
        load_rgb(Image.fromarray(np.full_like(values, np.nan)))


def test_palette_alpha_and_one_bit_become_what_one_sees(tmp_path: Path) -> None:
    grey = photograph().convert("L")
    expected = np.asarray(grey.convert("RGB"))
    opaque = Image.merge("LA", [grey, Image.new("L", grey.size, 255)])
    for image in (grey.convert("P"), opaque):
        image.save(tmp_path / "film.png")
        assert np.array_equal(np.asarray(load_rgb(tmp_path / "film.png")), expected)

    half = Image.new("RGBA", (2, 1), (200, 100, 50, 255))
    half.putpixel((1, 0), (200, 100, 50, 0))
    half.save(tmp_path / "alpha.png")
    assert np.asarray(load_rgb(tmp_path / "alpha.png")).tolist() == [[[200, 100, 50], [0, 0, 0]]]

    see_through = Image.new("P", (2, 1))
    see_through.putpalette([255, 255, 255, 10, 20, 30])
    see_through.putpixel((1, 0), 1)
    see_through.save(tmp_path / "see_through.png", transparency=0)
    assert np.asarray(load_rgb(tmp_path / "see_through.png")).tolist() == [[[0] * 3, [10, 20, 30]]]

    Image.new("1", (2, 2), 1).save(tmp_path / "bit.png")
    assert np.asarray(load_rgb(tmp_path / "bit.png")).min() == 255


def test_the_orientation_of_a_photograph_is_applied(tmp_path: Path) -> None:
    image = photograph((64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_rgb(tmp_path / "turned.jpg").size == (48, 64)


def test_an_image_in_memory_is_left_alone() -> None:
    image = photograph()
    copy = load_rgb(image)
    copy.paste(0, (0, 0, 64, 48))
    assert image == photograph()


# files


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "f.json"
    write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(DiveError, match="cannot write .*f.json: disk full"):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f.json"]
    write_text(path, "Ü\n")
    assert path.read_bytes() == "Ü\n".encode()
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_rows_appear_under_the_name_only_when_finished(tmp_path: Path) -> None:
    path = tmp_path / "out" / "reports.jsonl"
    with JsonlWriter(path) as writer:
        writer.append({"id": "a", "report": "Zwei\nZeilen, ä"})
        assert not path.exists()
        with pytest.raises(DiveError, match="id 'a' comes twice"):
            writer.append({"id": "a"})
        writer.finish()
    assert json.loads(path.read_text(encoding="utf-8")) == {"id": "a", "report": "Zwei\nZeilen, ä"}
    assert os.listdir(path.parent) == ["reports.jsonl"]


@pytest.mark.parametrize("torn", [b"", b'{"id": "c", "rep', b'{"id": "c"}', b"\xff\xfe\x00"])
def test_an_interrupted_run_goes_on_after_its_last_whole_line(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "reports.jsonl"
    run = {"prompt": "p", "max_new_tokens": 4}
    with JsonlWriter(path, fingerprint=run) as writer:
        writer.append({"id": "a", "n": 1})
        writer.append({"id": "b", "n": 2})
    with open(writer.partial, "ab") as file:
        file.write(torn)
    with JsonlWriter(path, fingerprint=dict(reversed(run.items()))) as writer:
        assert list(writer.done) == ["a", "b"]
        writer.append({"id": "c", "n": 3})
        writer.finish()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"id": "a", "n": 1}, {"id": "b", "n": 2}, {"id": "c", "n": 3}]
    assert os.listdir(tmp_path) == ["reports.jsonl"]


def test_another_run_is_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    with JsonlWriter(path, fingerprint={"prompt": "p", "adapter": None}) as writer:
        writer.append({"id": "a"})
    with pytest.raises(
        DiveError, match="was made with another adapter and another prompt: it cannot"
    ):
        JsonlWriter(path, fingerprint={"prompt": "q", "adapter": "x"})
    assert writer.partial.read_text() == '{"id": "a"}\n'


def test_a_partial_file_of_something_else_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    with JsonlWriter(path) as writer:
        writer.append({"id": "a"})
    writer.partial.write_text('{"id": "a"}\nnotes\n')
    with pytest.raises(DiveError, match=r"partial:2: is not a record with an id"):
        JsonlWriter(path)


def test_a_killed_process_loses_no_finished_row(tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    program = (
        "import os, sys; from dive.files.json_lines import JsonlWriter\n"
        "writer = JsonlWriter(sys.argv[1])\n"
        "for i in range(50): writer.append({'id': str(i)})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    with JsonlWriter(path) as writer:
        assert list(writer.done) == [str(i) for i in range(50)]


def test_a_run_that_never_comes_to_a_row_leaves_nothing(tmp_path):
    path = tmp_path / "not" / "there" / "rows.jsonl"
    with pytest.raises(ZeroDivisionError), JsonlWriter(path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with JsonlWriter(path) as writer:  # one without rows that came to its end does
        writer.finish()
    assert path.read_bytes() == b"" and [one.name for one in path.parent.iterdir()] == [path.name]


def test_write_jsonl(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "f.jsonl", iter([{"a": 1}, {"b": "é"}]))
    assert (tmp_path / "f.jsonl").read_text(encoding="utf-8") == '{"a": 1}\n{"b": "é"}\n'
