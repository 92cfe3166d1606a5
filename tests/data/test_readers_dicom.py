"""DICOM to RGB: rescale, window, photometric interpretation, depth, and files that are broken."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from data_trees import Mimic, write_dicom
from PIL import Image

from dive.data import Study, open_studies
from dive.data.images.load import LazyImage, load_rgb
from dive.errors import DiveError

pytest.importorskip("pydicom")

RAMP = np.linspace(0, 4095, 24).astype(np.uint16).reshape(4, 6)


def grey(path: Path) -> np.ndarray:
    image = load_rgb(path)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0].astype(int)


def test_without_a_window_the_range_of_the_values_is_shown(tmp_path: Path) -> None:
    values = RAMP + 100
    path = write_dicom(tmp_path / "a.dcm", values, BitsStored=13)
    assert np.array_equal(grey(path), np.rint(RAMP * (255 / 4095)).astype(int))
    one_value = write_dicom(tmp_path / "b.dcm", np.full_like(RAMP, 7))
    assert grey(one_value).max() == 0


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, "MONOCHROME1", BitsStored=12)
    plain = write_dicom(tmp_path / "b.dcm", RAMP, "MONOCHROME2", BitsStored=12)
    assert grey(path)[0, 0] == 255
    assert grey(path)[-1, -1] == 0
    assert np.abs(grey(path) + grey(plain) - 255).max() <= 1  # halves are rounded to even


def test_a_window_is_applied_after_the_rescale(tmp_path: Path) -> None:
    # stored 0..4095 -> -1000..3095; the window 500 wide about 0 shows -250..249
    options = {"RescaleSlope": 1, "RescaleIntercept": -1000, "BitsStored": 12}
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, WindowCenter=[0, 900], WindowWidth=[500, 50], **options
    )
    unit = (RAMP.astype(float) - 1000 + 0.5) / 499 + 0.5
    expected = np.rint(np.clip(unit, 0, 1) * 255).astype(int)
    assert np.array_equal(grey(path), expected)
    assert 0 < np.median(expected[(expected > 0) & (expected < 255)]) < 255

    exact = write_dicom(
        tmp_path / "b.dcm",
        RAMP,
        WindowCenter=0,
        WindowWidth=500,
        VOILUTFunction="LINEAR_EXACT",
        **options,
    )
    unit = (RAMP.astype(float) - 1000) / 500 + 0.5
    assert np.array_equal(grey(exact), np.rint(np.clip(unit, 0, 1) * 255).astype(int))

    sigmoid = write_dicom(
        tmp_path / "c.dcm",
        RAMP,
        WindowCenter=1000,
        WindowWidth=2000,
        VOILUTFunction="SIGMOID",
        **options,
    )
    unit = 1 / (1 + np.exp(-4 * (RAMP.astype(float) - 2000) / 2000))
    assert np.array_equal(grey(sigmoid), np.rint(unit * 255).astype(int))


def test_a_voi_table_wins_over_a_window(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    upside_down = 65535 - 257 * np.arange(256)
    table.add_new("LUTData", "OW", upside_down.astype("<u2").tobytes())
    stored = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    path = write_dicom(
        tmp_path / "a.dcm", stored, WindowCenter=5, WindowWidth=5, VOILUTSequence=Sequence([table])
    )
    assert np.array_equal(grey(path), 255 - stored.astype(int))


def test_padding_is_black_and_widens_no_range(tmp_path: Path) -> None:
    stored = RAMP // 2 + 1000
    stored[0, 0] = 65535
    for interpretation in ("MONOCHROME1", "MONOCHROME2"):
        path = write_dicom(tmp_path / "a.dcm", stored, interpretation)
        element = {"PixelPaddingValue": 65535}
        padded = write_dicom(tmp_path / "b.dcm", stored, interpretation, **element)
        assert np.unique(grey(path)).size < 20  # squeezed by the one large value
        shown = grey(padded)
        assert shown[0, 0] == 0
        assert set(shown.flat) >= {0, 255}
        assert np.unique(shown).size > 20


def test_colour(tmp_path: Path) -> None:
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[..., 0], colours[1, 1] = 200, (1, 2, 3)
    image = load_rgb(write_dicom(tmp_path / "a.dcm", colours, "RGB"))
    assert np.array_equal(np.asarray(image), colours)


def test_names_and_packing(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    wanted = grey(path)
    bare = tmp_path / "no_suffix"
    bare.write_bytes(path.read_bytes())
    assert np.array_equal(grey(bare), wanted)
    packed = tmp_path / "a.dcm.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(grey(packed), wanted)
    lazy = LazyImage("row 1", lambda: path)
    assert np.array_equal(np.asarray(load_rgb(lazy))[..., 0], wanted)


def test_broken_files_are_one_error_with_study_and_file(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    data = path.read_bytes()
    cases = {
        "half": data[:-20],
        "header": data[:200],
        "text": b"not a film",
        "empty": b"",
    }
    for name, content in cases.items():
        broken = tmp_path / f"{name}.dcm"
        broken.write_bytes(content)
        with pytest.raises(DiveError) as caught:
            Study("x", (broken,), source="t.csv: row 3").load_images()
        message = str(caught.value)
        assert message.startswith("t.csv: row 3: study 'x': cannot read the image (1 of 1): ")
    with pytest.raises(DiveError, match=r"there is no image file .*none\.dcm"):
        load_rgb(tmp_path / "none.dcm")
    (tmp_path / "b.dcm.gz").write_bytes(gzip.compress(data)[:-9])
    with pytest.raises(DiveError, match=r"b\.dcm\.gz: damaged gzip"):
        load_rgb(tmp_path / "b.dcm.gz")


def test_headers_that_ask_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = write_dicom(tmp_path / "a.dcm", RAMP, Rows=60000, Columns=60000)
    with pytest.raises(DiveError, match=r"has 60000 x 60000 pixels, the limit is 100,000,000"):
        load_rgb(huge)
    with pytest.raises(DiveError, match="the limit is 23"):
        load_rgb(write_dicom(tmp_path / "b.dcm", RAMP), max_pixels=23)
    frames = write_dicom(tmp_path / "c.dcm", RAMP, NumberOfFrames=2)
    with pytest.raises(DiveError, match="holds 2 frames"):
        load_rgb(frames)
    window = write_dicom(tmp_path / "d.dcm", RAMP, WindowCenter=5, WindowWidth=0)
    with pytest.raises(DiveError, match="want a width above 0"):
        load_rgb(window)
    unknown = write_dicom(tmp_path / "e.dcm", RAMP, "HSV")
    with pytest.raises(DiveError, match="PhotometricInterpretation is another value, want"):
        load_rgb(unknown)
    monkeypatch.setattr("dive.data.images.dicom.bounds.MAX_FILE_BYTES", 1000)
    bomb = tmp_path / "f.dcm.gz"
    bomb.write_bytes(gzip.compress(b"\0" * 100_000))
    with pytest.raises(DiveError, match="unpacks to more than 1,000 bytes"):
        load_rgb(bomb)


def test_a_png_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 6_000)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(DiveError, match=r"has 20000 x 6000 pixels, the limit is 100,000,000"):
        load_rgb(path)
    with pytest.raises(DiveError, match="the limit is 47"):
        Image.new("L", (8, 6)).save(tmp_path / "small.png")
        load_rgb(tmp_path / "small.png", max_pixels=47)


def test_without_pydicom_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DiveError, match=r"needs the package pydicom: pip install 'dive-mrg\[dic"):
        load_rgb(path, "t.csv: row 3")


def test_a_tree_of_dicom_files_loads(tmp_path: Path) -> None:
    mimic = Mimic(tmp_path)
    for path in list(mimic.root.glob("files/*/*/*/*.jpg")):
        write_dicom(path.with_suffix(".dcm"), RAMP, "MONOCHROME1", BitsStored=12)
        path.unlink()
    studies = open_studies(f"mimic-cxr:{tmp_path}")
    assert [study.load_images()[0].size for study in studies] == [(6, 4), (6, 4)]
