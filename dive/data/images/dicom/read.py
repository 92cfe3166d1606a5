"""DICOM files to 8-bit pixels: rescale, photometric interpretation, bit depth, padding."""

import gzip
import io
import logging
import re
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dive.data.images.bounds import check_pixels
from dive.data.images.contrast import FLAT, lost_greys, low_contrast
from dive.data.images.dicom.bounds import Bounded, gunzipped, plain
from dive.data.images.dicom.frames import check_frame
from dive.data.images.dicom.header import check_elements, check_values, odd_pixels, take_groups
from dive.data.images.dicom.stored_values import stored_values
from dive.data.images.dicom.tables import coloured, table_of
from dive.data.images.dicom.window import OWN, first_number, unit_range
from dive.data.images.levels import Levels, counted
from dive.data.images.quiet import quiet
from dive.errors import DiveError
from dive.errors.private import without_paths
from dive.files.input import NoRegularFile, open_file

if TYPE_CHECKING:
    from pydicom import Dataset

log = logging.getLogger(__name__)

_QUOTED = re.compile(
    r"""['"].*['"]"""
)  # from the first quote to the last, because they may be nested

T = TypeVar("T")


def is_dicom(path: Path | str) -> bool:
    """Whether a file is DICOM, by name (.dcm, .dicom, .dcm.gz) or by the prefix DICM."""
    name = str(path).lower()
    if name.endswith((".dcm", ".dicom", ".dcm.gz")):
        return True
    if name.endswith((".jpg", ".jpeg", ".png")):
        return False
    try:
        with open_file(path) as file:
            return file.read(132)[128:] == b"DICM"
    except (OSError, DiveError):
        return False  # the error comes when it is opened to be read


def is_dicom_data(data: bytes) -> bool:
    """Whether the bytes of a file, gzipped or not, are DICOM, by the prefix DICM."""
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(132)
        except (OSError, EOFError, zlib.error):
            return False
    return data[128:132] == b"DICM"


def read_dicom(
    path: Path | str | bytes, max_pixels: int, where: str = "", name: str = ""
) -> tuple[np.ndarray, list[str]]:
    """Pixels as a film viewer shows them, uint8 [H, W] or [H, W, 3], and notes about them.

    A note is a text for a warning: "the VOI table says 8 bits and ...". `path` may be the bytes of
    a file; error messages call it `name`.

    1. stored values: the `BitsStored` bits that end at `HighBit`, without the other bits;
       decompressed and, if in colour, converted to RGB;
    2. rescale slope and intercept, or the modality table;
    3. the first VOI table, else the first window (linear, linear exact or sigmoid), else the range
       of the values; of enhanced files those of their functional groups;
    4. MONOCHROME1, where small values are bright, is inverted; padding becomes black.

    Raises:
        DiveError: pydicom is missing; the file is no DICOM, damaged, without pixels, has several
            frames, more than `max_pixels`, or a compression without a decoder; elements are
            missing; bits, or a table and its descriptor, do not fit together; colours are signed; a
            table or window shows one grey value for different values.
    """

    def whole(file: Any, pydicom: Any) -> tuple[np.ndarray, list[str]]:
        unpacked = Bounded(gunzipped(file) if _is_packed(path) else file)
        header = pydicom.dcmread(Bounded(plain(unpacked, pydicom)))
        check_values(header)
        if "PixelData" not in header:
            raise DiveError("the DICOM file holds no PixelData")
        _check(header, max_pixels)
        check_elements(header)
        check_frame(header)
        take_groups(header)
        notes = [odd_pixels(header)]
        shown = _shown(header, notes)
        return shown, list(dict.fromkeys(filter(None, notes)))

    return _with_pydicom(path, where, name, whole)


def dicom_size(
    path: Path | str | bytes, max_pixels: int, where: str = "", name: str = ""
) -> tuple[int, int]:
    """(width, height) of the result of `read_dicom`, in pixels, from the header.

    Raises:
        DiveError: as `read_dicom`, except for faults of the pixels.
    """

    def size(file: Any, pydicom: Any) -> tuple[int, int]:
        packed = _is_packed(path)
        wanted = ["Rows", "Columns", "NumberOfFrames"]
        try:
            with gzip.open(file) if packed else nullcontext(file) as unpacked:
                front = Bounded(plain(Bounded(unpacked), pydicom))
                header = pydicom.dcmread(front, stop_before_pixels=True, specific_tags=wanted)
                check_values(header)
        except (zlib.error, gzip.BadGzipFile) as error:
            raise DiveError(f"damaged gzip ({error})") from error
        _check(header, max_pixels)
        return int(header.Columns), int(header.Rows)

    return _with_pydicom(path, where, name, size)


def _is_packed(path: Path | str | bytes) -> bool:
    if isinstance(path, bytes):
        return path[:2] == b"\x1f\x8b"
    return str(path).lower().endswith(".gz")


def _with_pydicom(
    path: Path | str | bytes, where: str, name: str, read: Callable[[Any, Any], T]
) -> T:
    """The result of `read(file, pydicom)`; every exception becomes a DiveError."""
    prefix = f"{where}: " if where else ""
    name = name or ("given as bytes" if isinstance(path, bytes) else str(path))
    try:
        import pydicom
    except ImportError:
        raise DiveError(
            f"{prefix}reading {name} needs the package pydicom: pip install 'dive-mrg[dicom]'"
        ) from None
    try:
        # pydicom warns of every fault in a header; the important ones are checked here.
        with quiet(), io.BytesIO(path) if isinstance(path, bytes) else open_file(path) as opened:
            return read(opened, pydicom)
    except FileNotFoundError:
        raise DiveError(f"{prefix}there is no image file {name}") from None
    except NoRegularFile as error:
        raise DiveError(
            f"{prefix}cannot read the image {name}: is {error.kind}, want a regular file"
        ) from None
    except DiveError as error:
        raise DiveError(f"{prefix}cannot read the image {name}: {error}") from error
    except MemoryError:
        raise DiveError(
            f"{prefix}cannot read the image {name}: it needs more memory than there is"
        ) from None
    except Exception as error:  # pydicom may raise anything on damage
        reason = _reason(error)
        log.info("%scannot read the image: %s: %s", prefix, type(error).__name__, error)
        raise DiveError(
            f"{prefix}cannot read the image {name}: {reason}, want a complete DICOM file"
        ) from error


def _check(header: "Dataset", max_pixels: int) -> None:
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise DiveError(f"holds {frames} frames, want a file with one image")
    rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    if rows < 1 or columns < 1:
        raise DiveError(f"Rows is {rows} and Columns {columns}, want both >= 1")
    check_pixels(columns, rows, max_pixels, "has")


def _shown(header: "Dataset", notes: list[str]) -> np.ndarray:
    interpretation = str(header.get("PhotometricInterpretation", ""))
    if int(header.SamplesPerPixel) > 1 and int(header.PixelRepresentation) == 1:
        raise DiveError("PixelRepresentation is 1 in colour, want unsigned colours")
    stored, kept = stored_values(header)
    if interpretation == "PALETTE COLOR":
        levels = Levels(stored)
        given = levels.values.astype(stored.dtype)[None]
        made = np.rint(coloured(given, header, notes) * 255.0).astype(np.uint8)[0]
        colours = np.stack([levels.spread(made[:, one]) for one in range(3)], -1)
        notes.append(_coloured_contrast(colours, stored))
        return colours
    if stored.ndim == 3:
        return _to_8_bits(stored, int(header.BitsStored))
    if not interpretation.startswith("MONOCHROME"):
        raise DiveError(
            "PhotometricInterpretation is another value, want MONOCHROME1, MONOCHROME2, "
            "RGB, YBR_* or PALETTE COLOR"
        )
    padding = _padding(header, stored, kept)
    del kept
    levels = Levels(stored, padding)
    tables = header.get("ModalityLUTSequence")
    if tables:
        table = table_of(tables[0], header, "the modality table", [])  # its depth is not used
        values = table.of(levels.values).astype(np.float64)
    else:
        values = levels.values.astype(np.float64) * _number(header, "RescaleSlope", 1.0)
        values += _number(header, "RescaleIntercept", 0.0)
    unit, by = unit_range(header, values, values[levels.counts > 0], notes)
    if interpretation == "MONOCHROME1":
        unit = 1.0 - unit
    grey = np.rint(unit * 255.0).astype(np.uint8)
    shown = levels.spread(grey)
    notes.append(_check_contrast(levels, values, grey, stored, padding, by))
    if padding is not None:
        shown[padding] = 0
    return shown


def _number(header: "Dataset", name: str, otherwise: float) -> float:
    value = first_number(header.get(name))
    if value is None:
        return otherwise
    if not np.isfinite(value) or (name == "RescaleSlope" and value == 0):
        raise DiveError(f"{name} is {value}, want a number{' that is not 0' * (not value)}")
    return value


def _check_contrast(
    levels: Levels,
    values: np.ndarray,
    grey: np.ndarray,
    stored: np.ndarray,
    padding: np.ndarray | None,
    by: str,
) -> str:
    """Raise DiveError where different values are shown alike; a note where contrast is low.

    values, grey: for each of `levels`, its value after rescaling and the grey value shown.
    """
    seen = levels.counts > 0
    low, high = float(values[seen].min()), float(values[seen].max())
    if int(grey[seen].max()) - int(grey[seen].min()) > FLAT:
        counts = np.zeros(256, np.int64)
        np.add.at(counts, grey, levels.counts)
        of = _applied(by, low, high)
        little = low_contrast(counts[None])
        if little:
            return little + of
        if by == OWN:  # their own range cuts nothing off
            return ""
        beside = stored.reshape(-1) if padding is None else stored[~padding]
        some = np.unique(beside[:: max(1, beside.size // 65536)])
        held = np.unique(values[np.searchsorted(levels.values, some)]).size
        lost = lost_greys(counts, held)
        return f"is shown as {lost}{of}" if lost else ""
    if high > low:
        raise DiveError(
            f"{by} shows one grey value ({int(grey[seen][0])} of 255) for values from {low:g} to "
            f"{high:g}, so that nothing of the film is visible"
        )
    if padding is not None:  # the contrast between a single value and the padding means nothing
        raise DiveError(f"has only the value {low:g} and padding: nothing is visible")
    return ""


def _coloured_contrast(shown: np.ndarray, stored: np.ndarray) -> str:
    """A note where the contrast of a palette image is low; "" otherwise."""
    channels = [counted(shown[..., one], 256) for one in range(3)]
    little = low_contrast(np.stack(channels))
    return little and little + _applied("the palette", float(stored.min()), float(stored.max()))


def _applied(by: str, low: float, high: float) -> str:
    return f": {by} was applied to values from {low:g} to {high:g}"


def _to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return values.astype(np.uint8)
    if bits > 16:
        return np.rint(values * (255.0 / (2**bits - 1))).astype(np.uint8)
    table = np.rint(np.arange(1 << bits) * (255.0 / (2**bits - 1))).astype(np.uint8)
    return table[values]


def _padding(header: "Dataset", stored: np.ndarray, kept: np.ndarray) -> np.ndarray | None:
    """Mask of the padding, a stored value or a range of them; None without padding."""
    if header.get("PixelPaddingValue") is None:
        return None
    first, bits = int(header.PixelPaddingValue), int(header.BitsStored)
    signed = stored.dtype.kind == "i"
    limit = header.get("PixelPaddingRangeLimit")
    last = first if limit is None else int(limit)
    if limit is None and not -(signed << (bits - 1)) <= first < 1 << (bits - signed):
        # Beyond the stored bits: a value of all allocated bits, or a signed one without its sign.
        wide = 8 * kept.dtype.itemsize
        first &= (1 << wide) - 1
        mask = kept == (first - (1 << wide) if signed and first >> (wide - 1) else first)
    else:
        mask = (stored >= min(first, last)) & (stored <= max(first, last))
    return mask if mask.any() and not mask.all() else None


def _reason(error: Exception) -> str:
    """The message of pydicom, without quotations from the header."""
    if type(error).__name__ == "InvalidDicomError":  # its message advises to read it nevertheless
        return "it has no prefix DICM behind its first 128 bytes"
    first = (str(error).strip().splitlines() or [""])[0]
    return _QUOTED.sub("...", without_paths(first)) or type(error).__name__
