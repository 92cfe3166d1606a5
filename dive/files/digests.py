"""Digests of JSON values and of files, whole or by samples where a file is large.

Runs are resumed by these strings, so they must not change from version to version.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dive.errors import DiveError
from dive.files.input import open_file

_BLOCK = 4096
_WHOLE = 64 << 20  # bytes: a file of a model up to this size is read whole
_FILM = 256 << 10  # bytes: an image file up to this size is read whole
_LAST = 1 << 20  # bytes: the end of a torch.save file lists the checksums of its entries
_NAME = 32  # hexadecimal digits of a digest


def of_json(value: Any, digits: int = _NAME) -> str:
    """Digest of a JSON value in `digits` hexadecimal digits; other values count by their `str`."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:digits]


def whole(path: Path) -> str:
    """Digest of all bytes of a file.

    Raises:
        DiveError: it cannot be read, or is no regular file.
    """
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:_NAME]
    except OSError as error:
        raise DiveError(f"cannot read {path}: {error.strerror}") from error


def sampled(path: Path) -> str:
    """Digest of one file of a model: all bytes of up to 64 MiB, else its size and samples.

    The samples of a safetensors file are its header and the ends and the middle of every tensor;
    those of another file are 1024 evenly spaced blocks and its last MiB.

    Raises:
        DiveError: it cannot be read.
    """
    try:
        with open_file(path) as file:
            handle, size = file.fileno(), os.fstat(file.fileno()).st_size
            if size <= _WHOLE:
                return hashlib.file_digest(file, "sha256").hexdigest()[:_NAME]
            ranges = _of_tensors(handle, size) if path.suffix == ".safetensors" else None
            if ranges is None:
                ranges = [*_spread(size, 1024), (max(0, size - _LAST), _LAST)]
            return _of_ranges(handle, size, ranges)
    except OSError as error:
        raise DiveError(f"cannot read {path}: {error.strerror}") from error


def film(path: Path) -> str:
    """Digest of an image file: all bytes of up to 256 KiB, else its size and 8 blocks.

    The first and the last block are among them. "" where the file cannot be read.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            ranges = [(0, size)] if size <= _FILM else _spread(size, 8)
            return _of_ranges(file.fileno(), size, ranges)
    except (OSError, DiveError):
        return ""


def _of_ranges(handle: int, size: int, ranges: Iterable[tuple[int, int]]) -> str:
    digest = hashlib.sha256(f"{size}\n".encode())
    for start, length in ranges:
        digest.update(os.pread(handle, length, start))
    return digest.hexdigest()[:_NAME]


def _spread(size: int, count: int) -> list[tuple[int, int]]:
    last = max(0, size - _BLOCK)
    return [(last * at // (count - 1), _BLOCK) for at in range(count)]


def _of_tensors(handle: int, size: int) -> list[tuple[int, int]] | None:
    """Ranges of the header and of the ends and the middle of each tensor; None without a header."""
    length = int.from_bytes(os.pread(handle, 8, 0), "little")
    if length > min(size - 8, 100_000_000):
        return None
    try:
        header = json.loads(os.pread(handle, length, 8))
        spans = [tuple(one["data_offsets"]) for name, one in header.items() if name[:2] != "__"]
        ranges = [(0, 8 + length)]
        for first, end in sorted(spans):
            begin, stop = 8 + length + int(first), 8 + length + int(end)
            block = min(_BLOCK, stop - begin)
            for start in (begin, begin + (stop - begin - block) // 2, stop - block):
                ranges.append((start, block))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return ranges if all(0 <= start < size and length >= 0 for start, length in ranges) else None
