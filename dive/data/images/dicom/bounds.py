"""Limits on what a DICOM file unpacks to, checked before it is unpacked."""

import gzip
import io
import zlib
from typing import Any

from dive.data.images.bounds import MAX_PIXELS
from dive.errors import DiveError

# of a deflated or gzipped file: those of the largest image in colour of 16 bits
MAX_FILE_BYTES = 6 * MAX_PIXELS

_DEFLATED = "1.2.840.10008.1.2.1.99"
_EXPLICIT = "1.2.840.10008.1.2.1"
_PIECE = 1 << 20
_READS = 200_000  # two per element; a header has some hundred elements


def gunzipped(file: Any) -> io.BytesIO:
    """Unpack a gzipped file.

    Raises:
        DiveError: it is damaged, or unpacks to more than `MAX_FILE_BYTES`.
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
    """Inflate a file in the deflated transfer syntax; any other file is returned at its start.

    pydicom would inflate it without a limit.

    Raises:
        DiveError: it is damaged, or unpacks to more than `MAX_FILE_BYTES`.
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
    # the value is padded with zeros to its length
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
    """A file that raises DiveError where more is read than an image and its header have.

    That is the case with endless elements of no length, or one of gigabytes.
    """

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


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DiveError(f"unpacks to more than {MAX_FILE_BYTES:,} bytes")
