"""What a DICOM file unpacks to, looked at before it is unpacked."""

import gzip
import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

from dive.data.bounds import MAX_PIXELS
from dive.errors import DiveError

if TYPE_CHECKING:
    from pydicom import Dataset

# of a deflated or gzipped file: the largest image, in colour of 16 bits, has as many
MAX_FILE_BYTES = 6 * MAX_PIXELS

_DEFLATED = "1.2.840.10008.1.2.1.99"
_EXPLICIT = "1.2.840.10008.1.2.1"
_RLE = "1.2.840.10008.1.2.5"
_PIECE = 1 << 20
_READS = 200_000  # two an element; a header has some hundred elements


def gunzipped(file: Any) -> io.BytesIO:
    """A gzipped file, unpacked.

    Raises:
        DiveError: damaged, or more than `MAX_FILE_BYTES`.
    """
    parts, size = [], 0
    try:
        with gzip.open(file) as packed:
            while part := packed.read(_PIECE):
                parts.append(part)
                size += len(part)
                _check_size(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DiveError(f"damaged gzip ({error})") from error
    return io.BytesIO(b"".join(parts))


def plain(file: Any, pydicom: Any) -> Any:
    """A file in the deflated transfer syntax inflated, as one that is not; any other as it is, at
    its start. pydicom would inflate it whole, whatever comes of it.

    Raises:
        DiveError: damaged, or more than `MAX_FILE_BYTES`.
    """
    file.seek(0)
    pydicom.filereader.read_preamble(file, force=False)
    front = pydicom.filereader.read_dataset(
        file, is_implicit_VR=False, is_little_endian=True,
        stop_when=lambda tag, _kind, _length: tag.group != 2,
    )  # fmt: skip
    start = file.tell()
    file.seek(0)
    if str(front.get("TransferSyntaxUID", "")) != _DEFLATED:
        return file
    # a value is filled up with zeros to its length
    whole = [file.read(start).replace(_DEFLATED.encode(), _EXPLICIT.encode() + b"\0\0\0", 1)]
    unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while not unpacker.eof and (part := unpacker.unconsumed_tail or file.read(_PIECE)):
            whole.append(unpacker.decompress(part, _PIECE))
            size += len(whole[-1])
            _check_size(size)
    except zlib.error as error:
        raise DiveError(f"damaged deflate ({error})") from error
    return io.BytesIO(b"".join(whole))


class Bounded:
    """A file that ends with an error where more is read of it than an image and its header have:
    elements of no length without end, or one of gigabytes."""

    def __init__(self, file: Any) -> None:
        self._file, self._reads = file, 0
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        self._reads += 1
        if self._reads > _READS:
            raise DiveError("has more elements than a header of an image")
        if size > MAX_FILE_BYTES or self._file.tell() > MAX_FILE_BYTES:
            raise DiveError(f"has elements of more than {MAX_FILE_BYTES:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset > MAX_FILE_BYTES:
            raise DiveError(f"has elements of more than {MAX_FILE_BYTES:,} bytes")
        return self._file.seek(offset, whence)


def check_frame(header: "Dataset") -> None:
    """DiveError where a compressed frame is of another size than Rows and Columns say: decoders
    believe the frame."""
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    data: Any = header.PixelData
    rows, columns = int(header.Rows), int(header.Columns)
    if syntax == _RLE:
        count = rows * columns * int(header.SamplesPerPixel) * -(-int(header.BitsAllocated) // 8)
        # bytes that do not repeat are packed as one more in 128, or, clumsily, as two each
        if len(data) > 2 * count + 4096:
            raise DiveError(
                f"holds {len(data):,} bytes of run lengths, and an image of {columns} x {rows} has "
                f"{count:,} unpacked; wants a file with one image"
            )
        return
    size = _size_of(data)
    if size is not None and size != (columns, rows):
        raise DiveError(
            f"its compressed pixels are {size[0]} x {size[1]}, and its header says {columns} x "
            f"{rows}"
        )


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DiveError(f"unpacks to more than {MAX_FILE_BYTES:,} bytes")


def _size_of(data: bytes) -> tuple[int, int] | None:
    """(width, height) in the header of the first JPEG, JPEG-LS or JPEG 2000 stream."""
    starts = [(data.find(mark), mark) for mark in (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")]
    place, mark = min(((at, mark) for at, mark in starts if at >= 0), default=(-1, b""))
    try:
        if mark[:2] == b"\xff\x4f":
            wide, high, left, above = struct.unpack_from(">4I", data, place + 8)
            return wide - left, high - above
        place += 2
        while place >= 2 and data[place] == 0xFF:
            kind, length = data[place + 1], struct.unpack_from(">H", data, place + 2)[0]
            frame = 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)
            if frame or kind == 0xF7:
                high, wide = struct.unpack_from(">2H", data, place + 5)
                return wide, high
            place += 2 + length if kind != 0xFF else 1
    except (struct.error, IndexError):
        return None
    return None
