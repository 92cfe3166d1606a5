"""DICOM whose stored values do not fill the allocated bits, and unusual windows."""

from pathlib import Path

import numpy as np
import pytest
from data_trees import write_dicom

from dive.data.images.load import load_rgb
from dive.errors import DiveError

pytest.importorskip("pydicom")

VALUES = np.linspace(0, 4095, 24).astype(np.uint16).reshape(4, 6)
RNG = np.random.default_rng(0)


def grey(path: Path) -> np.ndarray:
    return np.asarray(load_rgb(path))[..., 0].astype(int)


def ramp(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) / (high - low) * 255).astype(int)


@pytest.mark.parametrize("high", [11, 12, 15])
def test_values_are_moved_down_to_where_they_begin(tmp_path: Path, high: int) -> None:
    """Whatever stands in the bits above and below them, overlays say, is taken off."""
    low = high - 11
    rest = RNG.integers(0, 65536, VALUES.shape).astype(np.uint16) & ~np.uint16(0xFFF << low)
    path = write_dicom(
        tmp_path / "a.dcm", VALUES << low | rest, BitsStored=12, HighBit=high,
        WindowCenter=2048, WindowWidth=4096,
    )  # fmt: skip
    assert np.array_equal(grey(path), np.rint(VALUES / 4095 * 255).astype(int))
    bare = write_dicom(tmp_path / "b.dcm", VALUES << low | rest, BitsStored=12, HighBit=high)
    assert np.array_equal(grey(bare), ramp(VALUES))


@pytest.mark.parametrize("high", [11, 15])
def test_signed_values_keep_their_sign(tmp_path: Path, high: int) -> None:
    signed = VALUES.astype(np.int16) - 2048
    low = high - 11
    kept = (signed.astype(np.uint16) & 0xFFF) << low
    kept |= RNG.integers(0, 65536, VALUES.shape).astype(np.uint16) & ~np.uint16(0xFFF << low)
    elements = {"BitsStored": 12, "HighBit": high, "PixelRepresentation": 1}
    path = write_dicom(tmp_path / "a.dcm", kept, WindowCenter=0, WindowWidth=4096, **elements)
    assert np.array_equal(grey(path), np.rint(VALUES / 4095 * 255).astype(int))
    assert np.array_equal(grey(write_dicom(tmp_path / "b.dcm", kept, **elements)), ramp(signed))


def test_8_of_16_bits_in_colour(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (4, 6, 3)).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", colours << 8 | 3, "RGB", BitsStored=8, HighBit=15)
    assert np.array_equal(np.asarray(load_rgb(path)), colours)


def test_bits_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    for stored, high in ((12, 9), (12, 16), (17, 16), (0, 0)):
        path = write_dicom(tmp_path / "a.dcm", VALUES, BitsStored=stored, HighBit=high)
        with pytest.raises(
            DiveError, match=f"BitsAllocated is 16, BitsStored {stored} and HighBit {high}, want"
        ):
            load_rgb(path)


def test_compressed_values(tmp_path: Path) -> None:
    from pydicom import dcmread
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGLossless, RLELossless

    path = write_dicom(tmp_path / "a.dcm", VALUES << 4 | 5, BitsStored=12, HighBit=15)
    packed = dcmread(path)
    packed.compress(RLELossless, encoding_plugin="pydicom")
    packed.save_as(path)
    assert np.array_equal(grey(path), ramp(VALUES))
    packed.PixelData = encapsulate([b"\xff\xd8\xff\xc3\0\x0b\x10\0\4\0\6\1\1\x11\0\xff\xd9"])
    packed.file_meta.TransferSyntaxUID = JPEGLossless
    packed.save_as(path)
    with pytest.raises(DiveError, match=r"HighBit 15, and its pixels are compressed \(JPEG Loss"):
        load_rgb(path)


def test_two_images_under_a_header_of_one(tmp_path: Path) -> None:
    twice = np.concatenate([VALUES, VALUES[::-1]])
    path = write_dicom(tmp_path / "a.dcm", twice, Rows=4)
    with pytest.raises(DiveError, match="holds 96 bytes of PixelData, and an image of 6 x 4 has"):
        load_rgb(path)
    from pydicom import dcmread
    from pydicom.uid import RLELossless

    packed = dcmread(write_dicom(path, twice, Rows=4, NumberOfFrames=2))
    packed.compress(RLELossless, encoding_plugin="pydicom")
    packed.NumberOfFrames = 1
    packed.save_as(path)
    with pytest.raises(DiveError, match="holds 2 frames"):
        load_rgb(path)


def test_padding_beyond_the_stored_bits(tmp_path: Path) -> None:
    """It is told from white, whose lower bits are the same."""
    kept = VALUES.copy()
    kept[0, :2] = 65535
    path = write_dicom(tmp_path / "a.dcm", kept, BitsStored=12, PixelPaddingValue=65535)
    shown = grey(path)
    assert shown[0, :2].tolist() == [0, 0] and shown[-1, -1] == 255
    seen = VALUES[kept < 65535].astype(float)
    unit = (VALUES - seen.min()) / (seen.max() - seen.min())
    assert np.array_equal(shown[1:], np.rint(255 * unit).astype(int)[1:])
    # a sign that was written as none
    signed = VALUES.astype(np.int16)
    signed[0, 0] = -2000
    path = write_dicom(tmp_path / "b.dcm", signed)
    from pydicom import dcmread

    header = dcmread(path)
    header.add_new(0x00280120, "US", 65536 - 2000)
    header.save_as(path)
    assert grey(path)[0, 0] == 0
    assert np.array_equal(grey(path)[1:], np.rint(
        255 * (signed[1:] - float(signed[0, 1])) / (4095 - float(signed[0, 1]))
    ).astype(int))  # fmt: skip


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_a_slope_or_an_intercept_alone(tmp_path: Path, interpretation: str) -> None:
    window = {"WindowCenter": 0, "WindowWidth": 4096}
    path = write_dicom(tmp_path / "a.dcm", VALUES, interpretation, RescaleIntercept=-2048, **window)
    unit = VALUES / 4095
    unit = 1 - unit if interpretation == "MONOCHROME1" else unit
    assert np.array_equal(grey(path), np.rint(255 * unit).astype(int))
    down = write_dicom(
        tmp_path / "b.dcm", VALUES, interpretation, RescaleSlope=-1, RescaleIntercept=2047, **window
    )
    assert np.abs(grey(down) - np.rint(255 * (1 - unit)).astype(int)).max() <= 1
    for name, value in (("RescaleSlope", 0), ("RescaleIntercept", None)):
        odd = write_dicom(tmp_path / "c.dcm", VALUES, interpretation, **{name: value})
        if value is None:
            assert set(grey(odd).flat) >= {0, 255}
            continue
        with pytest.raises(DiveError, match=r"RescaleSlope is 0\.0, want a number that is not 0"):
            load_rgb(odd)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("centre", [-9000, 90_000])
@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_a_window_that_shows_nothing_of_the_film_is_refused(
    tmp_path: Path, centre: int, function: str, interpretation: str
) -> None:
    for padding in ({}, {"PixelPaddingValue": 0}):
        path = write_dicom(
            tmp_path / "a.dcm", VALUES, interpretation, WindowCenter=centre, WindowWidth=200,
            VOILUTFunction=function, **padding,
        )  # fmt: skip
        with pytest.raises(DiveError) as caught:
            load_rgb(path, "t:3")
        message = str(caught.value)
        assert message.startswith(f"t:3: cannot read the image {path}: the window (WindowCenter ")
        assert "shows one grey value" in message and "to 4095" in message


def test_windows_of_no_width(tmp_path: Path) -> None:
    step = write_dicom(tmp_path / "a.dcm", VALUES, WindowCenter=2000, WindowWidth=1)
    assert np.array_equal(grey(step), np.where(VALUES > 1999.5, 255, 0))
    for width, said in ((0, "want a width above 0"), (0.5, "want a width of 1 or more")):
        path = write_dicom(tmp_path / "b.dcm", VALUES, WindowCenter=2000, WindowWidth=width)
        with pytest.raises(DiveError, match=said):
            load_rgb(path)
    odd = write_dicom(
        tmp_path / "c.dcm", VALUES, WindowCenter=2000, WindowWidth=9, VOILUTFunction="CUBIC"
    )
    with pytest.raises(
        DiveError, match="VOILUTFunction is another value, want LINEAR, LINEAR_EXACT or"
    ):
        load_rgb(odd)
    blank = write_dicom(tmp_path / "d.dcm", VALUES, WindowCenter=[2048, 9], WindowWidth=[4096, 0])
    assert np.array_equal(grey(blank), np.rint(VALUES / 4095 * 255).astype(int))


def test_a_dicom_film_of_one_value(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.full_like(VALUES, 7))
    with pytest.warns(UserWarning, match=r"t:3: the image .*a\.dcm has no contrast"):
        load_rgb(path, "t:3")
    beside = np.where(VALUES > 2000, 7, 9).astype(np.uint16)
    path = write_dicom(tmp_path / "b.dcm", beside, PixelPaddingValue=9)
    with pytest.raises(DiveError, match="has only the value 7 and padding"):
        load_rgb(path)


def test_decompressed_values_are_held_against_the_stored_bits(tmp_path: Path) -> None:
    import io

    from PIL import Image
    from pydicom import dcmread
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    def packed(values: np.ndarray, **elements: int) -> Path:
        """The decoder gives the bits as they are, from 0 up."""
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "JPEG2000", no_jp2=True)
        file = dcmread(write_dicom(tmp_path / "a.dcm", values, **elements))
        file.PixelData = encapsulate([stream.getvalue()])
        file.file_meta.TransferSyntaxUID = JPEG2000Lossless
        file.save_as(tmp_path / "a.dcm")
        return tmp_path / "a.dcm"

    big = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)
    assert np.array_equal(grey(packed(big, BitsStored=12)), ramp(big))
    signed = big.astype(np.int16) - 2048
    bits = signed.astype(np.uint16) & 0xFFF
    path = packed(bits, BitsStored=12, PixelRepresentation=1)
    assert np.array_equal(grey(path), ramp(signed))
    with pytest.raises(
        DiveError, match="BitsStored 12 and HighBit 11, and decompressed values are from 0 to 16380"
    ):
        load_rgb(packed(big * 4, BitsStored=12))
