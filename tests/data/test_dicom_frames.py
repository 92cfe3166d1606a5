"""Compressed pixels that are more than one frame of the size that the header says; headers whose
words are not to be told."""

import io
import logging
import struct
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from data_trees import write_dicom
from PIL import Image

from dive.data.images.dicom.frames import check_frame
from dive.data.images.load import image_size, load_rgb
from dive.errors import DiveError

pydicom = pytest.importorskip("pydicom")

JPEG, RUNS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5"
RAMP = np.arange(0, 240, 10, np.uint8).reshape(4, 6)


class Syntax(str):
    is_encapsulated = True


def items(*pieces: bytes, offsets: bytes = b"") -> bytes:
    return b"".join(
        struct.pack("<HHI", 0xFFFE, 0xE000, len(one)) + one for one in (offsets, *pieces)
    )


def check(
    *pieces: bytes, syntax: str = JPEG, rows: int = 8, columns: int = 8, offsets: bytes = b""
) -> None:
    data = items(*pieces, offsets=offsets)
    check_frame(
        SimpleNamespace(  # type: ignore[arg-type]
            file_meta=SimpleNamespace(TransferSyntaxUID=Syntax(syntax)), PixelData=data, Rows=rows,
            Columns=columns, SamplesPerPixel=1, BitsAllocated=16 if syntax == RUNS else 8,
        )
    )  # fmt: skip


def jpeg(width: int = 8, height: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), 90).save(file, "JPEG")
    return file.getvalue()


def test_a_frame_is_of_the_size_that_the_header_says() -> None:
    check(jpeg())
    check(jpeg(8, 9) + b"\0", rows=9)
    with pytest.raises(DiveError, match="pixels are 8 x 60000, and its header says 8 x 8"):
        check(jpeg().replace(b"\0\x08\0\x08", struct.pack(">HH", 60000, 8), 1))
    siz = b"\xff\x4f\xff\x51\0\x29\0\0" + struct.pack(">4I", 20000, 9, 0, 1) + bytes(30)
    boxed = b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4s", 12, b"uuid") + b"\xff\x4f\xff\x51"
    for wavelets in (siz, boxed + struct.pack(">I4s", 0, b"jp2c") + siz):
        check(wavelets, syntax="1.2.840.10008.1.2.4.90", columns=20000)
        with pytest.raises(DiveError, match="pixels are 20000 x 8, and"):
            check(wavelets, syntax="1.2.840.10008.1.2.4.90")
    # what a decoder would pass over, and what it could not begin with
    for front in (b"\xff\xd8\xff", jpeg()[:30], b"junk"):
        with pytest.raises(
            DiveError, match="holds 2 frames|no complete header of JPEG|pixels are 9999 x"
        ):
            check(front + jpeg(9999, 9999))
    for cut in (jpeg()[:30], b"", b"\xff\xd8\xff\xd9"):
        with pytest.raises(DiveError, match=r"have no complete header|damaged, or cut off"):
            check(cut)


def test_several_frames_are_refused_whatever_their_number_is_said_to_be() -> None:
    one = jpeg()
    check(one[:50], one[50:])  # of one frame in two pieces
    for pieces in ((one, one), (one + one,), (one + b"\0", b"\xff", b"\xd8", one[2:])):
        with pytest.raises(DiveError, match="holds 2 frames"):
            check(*pieces)
    with pytest.raises(DiveError, match="holds 2 frames"):
        check(one, offsets=bytes(8))
    with pytest.raises(DiveError, match="holds 2 frames"):
        check(bytes(100), bytes(100), syntax=RUNS)
    with pytest.raises(DiveError, match="damaged, or cut off"):
        check_frame(
            SimpleNamespace(  # type: ignore[arg-type]
                file_meta=SimpleNamespace(TransferSyntaxUID=Syntax(JPEG)), PixelData=one, Rows=8,
                Columns=8,
            )
        )  # fmt: skip


def runs(*segments: bytes) -> bytes:
    starts = [64 + sum(map(len, segments[:place])) for place in range(len(segments))]
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(
        segments
    )


def test_run_lengths_are_walked_before_they_are_unpacked() -> None:
    side = 3000
    check(runs(b"\x81\0" * (side * side // 128 + 1), b"\x81\0" * (side * side // 128 + 1)),
          syntax=RUNS, rows=side, columns=side)  # fmt: skip
    literal = b"\x07abcdefgh" * 8 + b"\0"  # filled up to an even length
    check(runs(literal, b"\x80" + literal), syntax=RUNS)
    bomb = b"\x81\0" * (side * side - 200)
    started = time.process_time()  # what other processes take does not count
    with pytest.raises(DiveError, match="unpack to more than the 9,000,000 pixels of 3000 x 3000"):
        check(runs(bomb, bomb), syntax=RUNS, rows=side, columns=side)
    with pytest.raises(DiveError, match="unpack to more"):
        check(runs(b"\x81\0", bomb), syntax=RUNS, rows=side, columns=side)
    assert time.process_time() - started < 2
    with pytest.raises(DiveError, match="has 1 segments of run lengths, and its pixels 2 bytes"):
        check(runs(literal), syntax=RUNS)
    with pytest.raises(DiveError, match="has 9,000 bytes of run lengths"):
        check(bytes(9000), syntax=RUNS)


def raw(path: Path, name: str, kind: str, value: bytes) -> Path:
    """A film of which one element is what pydicom itself would not write."""
    made = pydicom.dcmread(write_dicom(path, RAMP))
    tag = pydicom.tag.Tag(name)
    made[tag] = pydicom.dataelem.RawDataElement(tag, kind, len(value), value, 0, False, True)
    made.save_as(path, enforce_file_format=True)
    return path


ELEMENTS = [
    ("NumberOfFrames", "IS"), ("Rows", "LO"), ("Columns", "IS"), ("SamplesPerPixel", "LO"),
    ("PhotometricInterpretation", "CS"), ("VOILUTFunction", "CS"), ("BitsAllocated", "LO"),
    ("BitsStored", "IS"), ("HighBit", "IS"), ("PixelRepresentation", "LO"), ("RescaleSlope", "DS"),
    ("WindowCenter", "DS"), ("WindowWidth", "LO"), ("PixelPaddingValue", "LO"),
    ("PixelSpacing", "DS"), ("PixelAspectRatio", "IS"), ("VOILUTSequence", "LO"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), ELEMENTS)
def test_what_stands_in_a_header_is_not_told(tmp_path, name, kind, capfd, recwarn, caplog):
    value = b"CANARY SMITH^7" if name != "WindowWidth" else b'CANARY\'S "7" '
    extra = {"WindowCenter": 5, "WindowWidth": 9} if name == "VOILUTFunction" else {}
    path = raw(tmp_path / "a.dcm", name, kind, value)
    if extra:
        made = pydicom.dcmread(path)
        made.WindowCenter, made.WindowWidth = 5, 9
        made.save_as(path)
    recwarn.clear()
    caplog.clear()
    caplog.set_level(logging.WARNING)
    with pytest.raises(DiveError) as caught, ThreadPoolExecutor(2) as pool:
        warnings.simplefilter("always")
        list(pool.map(load_rgb, [path] * 4))
    said = str(caught.value)
    assert name in said
    told = [said, *capfd.readouterr(), caplog.text, *(str(one.message) for one in recwarn)]
    assert not [one for one in told if "CANARY" in one or "SMITH" in one]
    if name in ("Rows", "Columns", "NumberOfFrames"):
        with pytest.raises(DiveError, match=f"{name} holds something else than a whole number"):
            image_size(path)


def test_a_slip_in_a_header_is_no_warning(tmp_path, recwarn, caplog):
    path = raw(tmp_path / "a.dcm", "NumberOfFrames", "IS", b"0000000000001 ")
    recwarn.clear()
    caplog.clear()
    with ThreadPoolExecutor(4) as pool:
        films = list(pool.map(load_rgb, [path] * 16))
    assert films[0].size == (6, 4) and [str(one.message) for one in recwarn] == []
    assert caplog.text == ""


def test_no_dicom_is_not_advised_to_be_read_nevertheless(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"")
    with pytest.raises(DiveError, match="it has no prefix DICM behind its first 128 bytes, want a"):
        load_rgb(tmp_path / "a.dcm")
