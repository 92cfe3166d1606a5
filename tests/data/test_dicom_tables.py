"""DICOM lookup tables, functional groups and headers; and windows with hardly any contrast."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
from data_trees import write_dicom
from PIL import Image

from dive.data import open_studies
from dive.data.images.load import LazyImage, image_size, load_rgb
from dive.errors import DiveError

pydicom = pytest.importorskip("pydicom")

VALUES = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)
SMALL = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


def grey(path: Path) -> np.ndarray:
    return np.asarray(load_rgb(path))[..., 0].astype(int)


def item(**elements: object):
    """A sequence of one item."""
    dataset = pydicom.Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return pydicom.Sequence([dataset])


def table(descriptor: list[int], entries: np.ndarray, kind: str):
    """entries: of the width that they are kept in. kind: US or OW."""
    found = item(LUTDescriptor=descriptor)
    data = entries.astype(entries.dtype.newbyteorder("<")).tobytes()
    data += b"\0" * (len(data) % 2)
    words = np.frombuffer(data, "<u2").tolist()
    found[0].add_new("LUTData", kind, words if kind == "US" else data)
    return found


@pytest.mark.parametrize("kind", ["US", "OW"])
@pytest.mark.parametrize("width", [np.uint8, np.uint16])
@pytest.mark.parametrize("odd", [0, 1])
def test_8_bit_entries_in_bytes_and_in_words(tmp_path: Path, kind: str, width: type, odd: int):
    """Told by how many bytes there are."""
    count = 4096 - odd
    entries = np.rint(255 - np.arange(count) * (255 / 4095)).astype(width)
    path = write_dicom(
        tmp_path / "a.dcm", VALUES, VOILUTSequence=table([count, 0, 8], entries, kind)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(grey(path), entries[np.minimum(VALUES, count - 1)].astype(int))


@pytest.mark.parametrize("bits", [8, 10])
def test_entries_beyond_the_bits_of_the_descriptor(tmp_path: Path, bits: int) -> None:
    entries = np.arange(4096, dtype=np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm", VALUES, VOILUTSequence=table([4096, 0, bits], entries, "US")
    )
    said = rf"a\.dcm says that the VOI table has {bits} bits, .*up to 4095: read as 12 bits"
    with pytest.warns(UserWarning, match=said):
        assert np.array_equal(grey(path), np.rint(VALUES * (255 / 4095)).astype(int))


def test_entries_far_below_the_bits_of_the_descriptor(tmp_path: Path) -> None:
    """The standard has it so, and hardly anything is seen."""
    entries = np.arange(4096, dtype=np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm", VALUES, VOILUTSequence=table([4096, 0, 16], entries, "OW")
    )
    said = r"hardly any contrast: .* of 255: the VOI table \(16 bits, entries up to 4095\)"
    with pytest.warns(UserWarning, match=said) as caught:
        assert grey(path).max() == 16
    assert len(caught) == 1


def test_tables_and_descriptors_that_do_not_fit(tmp_path: Path) -> None:
    short = np.arange(100, dtype=np.uint16)
    for descriptor, said in (
        ([4096, 0, 12], "the VOI table has 4,096 entries and 200 bytes, want one or two"),
        ([100, 0, 24], "want entries of 8 to 16 bits"),
        ([100, 0], "want three numbers"),
    ):
        path = write_dicom(
            tmp_path / "a.dcm", VALUES, VOILUTSequence=table(descriptor, short, "OW")
        )
        with pytest.raises(DiveError, match=said):
            load_rgb(path)
    path = write_dicom(tmp_path / "b.dcm", VALUES, VOILUTSequence=item(LUTExplanation="none"))
    with pytest.raises(DiveError, match="the VOI table has no LUTDescriptor, want three"):
        load_rgb(path)


def test_a_modality_table_in_words(tmp_path: Path) -> None:
    entries = np.arange(256, dtype=np.uint16)[::-1].copy()
    path = write_dicom(
        tmp_path / "a.dcm", SMALL, ModalityLUTSequence=table([256, 0, 8], entries, "OW"),
        WindowCenter=128, WindowWidth=256,
    )  # fmt: skip
    assert np.array_equal(grey(path), 255 - SMALL.astype(int))


def test_a_first_value_whose_sign_was_written_as_none(tmp_path: Path) -> None:
    signed = VALUES.astype(np.int16) - 2048
    found = table([4096, 0, 12], np.arange(4096, dtype=np.uint16), "OW")
    for first in (-2048, 65536 - 2048):
        del found[0].LUTDescriptor
        found[0].add_new("LUTDescriptor", "SS" if first < 0 else "US", [4096, first, 12])
        path = write_dicom(tmp_path / "a.dcm", signed, VOILUTSequence=found)
        assert np.array_equal(grey(path), np.rint(VALUES * (255 / 4095)).astype(int))


@pytest.mark.parametrize("width", [np.uint8, np.uint16])
@pytest.mark.parametrize("bits", [8, 16])
def test_palettes(tmp_path: Path, width: type, bits: int) -> None:
    """8 bits in words are no picture of 0 and 1; 16 bits are scaled by 16."""
    if bits == 16 and width is np.uint8:
        return
    step = 257 if bits == 16 else 1
    colours = {
        "Red": np.arange(256) * step, "Green": np.arange(255, -1, -1) * step,
        "Blue": np.arange(256) // 2 * step,
    }  # fmt: skip
    elements: dict[str, object] = {}
    for name, entries in colours.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        elements[f"{name}PaletteColorLookupTableData"] = entries.astype(width).tobytes()
    path = write_dicom(tmp_path / "a.dcm", SMALL, "PALETTE COLOR", **elements)
    wanted = np.stack([entries[SMALL] // step for entries in colours.values()], -1)
    assert np.array_equal(np.asarray(load_rgb(path)), wanted)


# windows


def marked(unit: float = 1.0) -> np.ndarray:
    values = (VALUES * unit).astype(np.uint16)
    values[3:6, 3:6] = 4095
    return values


@pytest.mark.parametrize(
    ("unit", "window", "said"),
    [
        (0.9, (4090, 20), "has no contrast: 96% of its pixels are one colour: the window"),
        (1, (32768, 65536), "has hardly any contrast: 96% of its pixels lie between 0 and 16 of"),
        (1, (32768 - 30000, 65536), "has hardly any contrast: .* WindowWidth 65536"),
        (1, (2048, 20), r"is shown as 99\.\d% of the pixels black or white: the window"),
    ],
)
@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_a_window_that_shows_hardly_anything_is_told_of(
    tmp_path: Path, unit: float, window: tuple[int, int], said: str, interpretation: str
) -> None:
    if interpretation == "MONOCHROME1":
        said = said.replace("between 0 and 16", "between 239 and 255")
    path = write_dicom(
        tmp_path / "a.dcm", marked(unit), interpretation, WindowCenter=window[0],
        WindowWidth=window[1],
    )  # fmt: skip
    with pytest.warns(UserWarning, match=rf"t:3: the image .*a\.dcm {said}") as caught:
        load_rgb(path, "t:3")
    assert len(caught) == 1


def test_one_large_value_that_squeezes_the_range(tmp_path: Path) -> None:
    values = VALUES // 4
    values[0, 0] = 65535
    with pytest.warns(UserWarning, match="hardly any contrast: .*: its own range was applied"):
        load_rgb(write_dicom(tmp_path / "a.dcm", values))


def test_films_with_a_frame_and_a_marker_are_warned_of_nothing(tmp_path: Path) -> None:
    values = np.zeros((64, 64), np.uint16)
    values[20:42, 20:42] = np.linspace(300, 3000, 22 * 22).reshape(22, 22)
    values[3:6, 3:6] = 4095
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for window in ({}, {"WindowCenter": 1800, "WindowWidth": 2500},
                       {"WindowCenter": 2048, "WindowWidth": 4096}):  # fmt: skip
            for kind in ("MONOCHROME1", "MONOCHROME2"):
                load_rgb(write_dicom(tmp_path / "a.dcm", values, kind, **window))
        mask = (VALUES > 2000).astype(np.uint16)
        load_rgb(write_dicom(tmp_path / "b.dcm", mask, WindowCenter=1, WindowWidth=1))


# headers


def test_elements_that_are_missing_are_named(tmp_path: Path) -> None:
    for name in ("BitsStored", "BitsAllocated", "SamplesPerPixel", "PixelRepresentation"):
        file = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", VALUES))
        delattr(file, name)
        file.save_as(tmp_path / "a.dcm")
        with pytest.raises(DiveError, match=rf"a\.dcm: has no {name}, without which"):
            load_rgb(tmp_path / "a.dcm")


def test_signed_colours_are_refused(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(-2000, 2000, (4, 6, 3)).astype(np.int16)
    with pytest.raises(DiveError, match="PixelRepresentation is 1 in colour"):
        load_rgb(write_dicom(tmp_path / "a.dcm", colours, "RGB"))


@pytest.mark.parametrize("shared", [True, False])
def test_enhanced_files_of_one_frame(tmp_path: Path, shared: bool) -> None:
    groups = item(
        PixelValueTransformationSequence=item(RescaleSlope=2, RescaleIntercept=-1000),
        FrameVOILUTSequence=item(WindowCenter=1000, WindowWidth=2000),
        PixelMeasuresSequence=item(PixelSpacing=[0.2, 0.1]),
    )
    name = "Shared" if shared else "PerFrame"
    path = write_dicom(
        tmp_path / "a.dcm", VALUES, NumberOfFrames=1,
        **{f"{name}FunctionalGroupsSequence": groups},
    )  # fmt: skip
    unit = np.clip((VALUES * 2.0 - 1000 - 999.5) / 1999 + 0.5, 0, 1)
    with pytest.warns(UserWarning, match=r"has the PixelSpacing 0\.2 to 0\.1: its pixels are not"):
        assert np.array_equal(grey(path), np.rint(255 * unit).astype(int))


def test_pixels_that_are_not_square_are_told_of(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", VALUES, PixelAspectRatio=[2, 1])
    with pytest.warns(UserWarning, match=r"a\.dcm has the PixelAspectRatio 2 to 1: its pixels are"):
        assert load_rgb(path).size == (64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_rgb(write_dicom(tmp_path / "b.dcm", VALUES, ImagerPixelSpacing=[0.143, 0.143]))


def test_bytes_of_a_dicom_file(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", VALUES)
    whole = path.read_bytes()
    rows = [
        {"id": n, "image": {"bytes": data, "path": "a.dcm"}, "findings": "Clear."}
        for n, data in enumerate((whole, gzip.compress(whole)))
    ]
    for study in open_studies(rows).read():
        assert np.array_equal(np.asarray(study.load_images()[0])[..., 0], grey(path))
        assert image_size(study.images[0]) == (64, 64)
    broken = LazyImage("row 7", lambda: whole[:-50])
    with pytest.raises(DiveError, match="t:1: cannot read the image row 7: "):
        load_rgb(broken, "t:1")
    other = gzip.compress(b"no film")
    with pytest.raises(DiveError, match="cannot read the image row 8"):
        load_rgb(LazyImage("row 8", lambda: other))
    assert isinstance(load_rgb(LazyImage("row 9", lambda: whole)), Image.Image)
