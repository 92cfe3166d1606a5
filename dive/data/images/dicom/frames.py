"""Checks of the compressed pixels of a DICOM file, before a decoder reads them."""

import re
import struct
from typing import TYPE_CHECKING

from dive.errors import DiveError

if TYPE_CHECKING:
    from pydicom import Dataset

_RLE = "1.2.840.10008.1.2.5"
_JPEG = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.([5-9]\d|20[1-3])")  # JPEG, -LS, 2000
_ITEM, _END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_MOST_ITEMS = 100_000  # a frame is one item or a few
_SOI, _SIZ, _JP2 = b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "
# An end of image and then a start, which do not occur within the pixels of one image.
_ANOTHER = re.compile(rb"\xff\xd9[\0\xff]*?(?:\xff\xd8\xff|\xff\x4f\xff\x51)")
_SPARE = 128  # bytes: writers pad the last run


def check_frame(header: "Dataset") -> None:
    """Raise DiveError unless the compressed pixels are one frame of the size in Rows and Columns.

    Decoders trust the frame, and take the first of several.
    """
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    rows, columns = int(header.Rows), int(header.Columns)
    offsets, *pieces = _items(header.PixelData)
    pieces = [piece for piece in pieces if len(piece)]
    starts = sum(bytes(piece[:4]).startswith((_SOI, _SIZ, _JP2[:4])) for piece in pieces)
    frames = max(len(offsets) // 4, len(pieces) if syntax == _RLE else starts)
    if frames > 1:
        raise _several(frames)
    data = bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
    if syntax == _RLE:
        _check_runs(data, header, rows, columns)
    elif _JPEG.fullmatch(syntax):
        size = _size_of(data)
        if size != (columns, rows):
            raise DiveError(
                f"its compressed pixels are {size[0]} x {size[1]}, and its header says {columns} x "
                f"{rows}"
            )


def _several(frames: int) -> DiveError:
    return DiveError(f"holds {frames} frames or more, want a file with one image")


def _items(data: bytes) -> list[memoryview]:
    """The table of offsets, which may be empty, and the fragments behind it."""
    found: list[memoryview] = []
    offset, whole = 0, memoryview(data)
    while offset + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHI", data, offset)
        if (group, element) == _END:
            break
        offset += 8 + length
        if (group, element) != _ITEM or offset > len(data) or len(found) > _MOST_ITEMS:
            raise DiveError("its compressed pixels are damaged, or cut off")
        found.append(whole[offset - length : offset])
    if len(found) < 2:
        raise DiveError("its compressed pixels are damaged, or cut off")
    return found


def _check_runs(data: bytes, header: "Dataset", rows: int, columns: int) -> None:
    """Raise DiveError where a segment unpacks to more bytes than the image has pixels.

    Two bytes may represent 128.
    """
    count = rows * columns
    bytes_each = -(-int(header.BitsAllocated) // 8)
    wanted = int(header.SamplesPerPixel) * bytes_each
    # bytes without repetition take one more per 128, or, badly packed, two each
    if len(data) > 2 * count * wanted + 4096:
        raise DiveError(
            f"has {len(data):,} bytes of run lengths, and an image of {columns} x {rows} has "
            f"{count * wanted:,} unpacked, want a file with one image"
        )
    if len(data) < 64:
        raise DiveError("its compressed pixels are damaged, or cut off")
    segments, *starts = struct.unpack_from("<16I", data)
    if segments != wanted or segments > 15:
        raise DiveError(f"has {segments} segments of run lengths, and its pixels {wanted} bytes")
    for start, end in zip(starts, [*starts[1:segments], len(data)], strict=False):
        if _unpacks_beyond(data[start:end], count + _SPARE):
            raise DiveError(
                f"its run lengths unpack to more than the {count:,} pixels of {columns} x {rows}"
            )


def _unpacks_beyond(packed: bytes, most: int) -> bool:
    """Whether runs unpack to more than `most` bytes; it stops as soon as they do."""
    offset = size = 0
    end = len(packed)
    while offset < end and size <= most:
        head = packed[offset]
        if head < 128:
            size += min(head + 1, end - offset - 1)
            offset += head + 2
        else:
            size += 257 - head if head > 128 else 0
            offset += 2 if head > 128 else 1
    return size > most


def _size_of(data: bytes) -> tuple[int, int]:
    """(width, height) from the header of a single JPEG, JPEG-LS or JPEG 2000 stream.

    Raises:
        DiveError: there is no such header, or more than one.
    """
    try:
        if data.startswith(_SOI[:2]):
            size, behind = _jpeg(data)
        else:
            behind = _codestream(data)
            wide, high, left, above = struct.unpack_from(">4I", data, behind + 8)
            size = wide - left, high - above
    except (struct.error, IndexError):
        raise DiveError(
            "its compressed pixels have no complete header of JPEG or JPEG 2000"
        ) from None
    if _ANOTHER.search(data, behind):
        raise _several(2)
    return size


def _jpeg(data: bytes) -> tuple[tuple[int, int], int]:
    """The size, and the offset of the first scan.

    Markers are searched as by decoders, which skip other bytes between them.
    """
    offset, size = 2, None
    while True:
        while data[offset] != 0xFF or data[offset + 1] in (0x00, 0xFF):
            offset = max(offset + 1, data.find(b"\xff", offset + 1))
        kind = data[offset + 1]
        if kind in (0xDA, 0xD9):
            break
        if kind == 0xD8:
            raise _several(2)
        if kind == 0x01 or 0xD0 <= kind <= 0xD7:  # markers without a length
            offset += 2
            continue
        length: int = struct.unpack_from(">H", data, offset + 2)[0]
        if (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)) or kind == 0xF7:
            if size is not None:
                raise _several(2)
            high, wide = struct.unpack_from(">2H", data, offset + 5)
            size = wide, high
        offset += 2 + length
    if size is None:
        raise IndexError
    return size, offset


def _codestream(data: bytes) -> int:
    """The offset of the JPEG 2000 codestream: the start, or in its box."""
    offset = 0
    while data[offset : offset + 4] != _SIZ:
        if not data.startswith(_JP2):
            raise IndexError
        length, kind = struct.unpack_from(">I4s", data, offset)
        head = 8
        if length == 1:
            length, head = struct.unpack_from(">Q", data, offset + 8)[0], 16
        if kind == b"jp2c":
            offset += head
            if data[offset : offset + 4] != _SIZ:
                raise IndexError
        elif length < head:
            raise IndexError
        else:
            offset += length
    return offset
