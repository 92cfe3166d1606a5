"""One DICOM file to 8-bit pixels: rescale, window, photometric interpretation, bit depth."""

import gzip
import io
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dive.errors import DiveError

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_FILE_BYTES = 1 << 30  # of a gzipped file, unpacked

T = TypeVar("T")


def is_dicom(path: Path | str) -> bool:
    """By name (.dcm, .dicom, .dcm.gz), or by the four letters behind the preamble."""
    name = str(path).lower()
    if name.endswith((".dcm", ".dicom", ".dcm.gz")):
        return True
    if name.endswith((".jpg", ".jpeg", ".png")):
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False  # whoever opens it next says what is wrong


def read_dicom(path: Path | str, max_pixels: int, where: str = "") -> np.ndarray:
    """Pixels as a film viewer shows them: uint8, [H, W] or [H, W, 3].

    1. stored values, of `BitsStored` bits; decompressed and, where in colour, turned to RGB;
    2. rescale slope and intercept, or the modality table;
    3. the first VOI table, else the first window (linear, linear exact or sigmoid), else the
       smallest value to the largest;
    4. MONOCHROME1, where small values are bright, is inverted; padding becomes black.

    Raises:
        DiveError: pydicom is missing; no DICOM, damaged, no pixels, several frames, more than
            `max_pixels`, a compression for which a decoder is missing.
    """

    def whole(file: Any, pydicom: Any) -> np.ndarray:
        unpacked = _unpacked(file) if str(path).lower().endswith(".gz") else file
        header = pydicom.dcmread(unpacked)
        if "PixelData" not in header:
            raise DiveError("the DICOM file holds no PixelData")
        _check(header, max_pixels)
        return _shown(header)

    return _read(path, where, whole)


def dicom_size(path: Path | str, max_pixels: int, where: str = "") -> tuple[int, int]:
    """(width, height) of what `read_dicom` gives, in pixels, from what stands before the pixels.

    Raises:
        DiveError: as `read_dicom`, but for what is wrong with the pixels.
    """

    def front(file: Any, pydicom: Any) -> tuple[int, int]:
        packed = str(path).lower().endswith(".gz")
        wanted = ["Rows", "Columns", "NumberOfFrames"]
        try:
            with gzip.open(file) if packed else nullcontext(file) as unpacked:
                header = pydicom.dcmread(unpacked, stop_before_pixels=True, specific_tags=wanted)
        except (zlib.error, gzip.BadGzipFile) as error:
            raise DiveError(f"damaged gzip ({error})") from error
        _check(header, max_pixels)
        return int(header.Columns), int(header.Rows)

    return _read(path, where, front)


def _read(path: Path | str, where: str, read: Callable[[Any, Any], T]) -> T:
    """What `read` makes of the opened file and of pydicom; whatever goes wrong is a DiveError."""
    prefix = f"{where}: " if where else ""
    try:
        import pydicom
    except ImportError:
        raise DiveError(
            f"{prefix}reading {path} needs the package pydicom: pip install 'dive-mrg[dicom]'"
        ) from None
    try:
        # pydicom warns of every slip in a header; what matters below is checked below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open(path, "rb") as opened:
                return read(opened, pydicom)
    except FileNotFoundError:
        raise DiveError(f"{prefix}there is no image file {path}") from None
    except DiveError as error:
        raise DiveError(f"{prefix}cannot read the image {path}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # pydicom meets damage with whatever the broken element leads to
        raise DiveError(
            f"{prefix}cannot read the image {path}: {_first_line(error)}; wants a whole DICOM file"
        ) from error


def _unpacked(file: Any) -> io.BytesIO:
    try:
        with gzip.open(file) as packed:
            data = packed.read(MAX_FILE_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DiveError(f"damaged gzip ({error})") from error
    if len(data) > MAX_FILE_BYTES:
        raise DiveError(f"unpacks to more than {MAX_FILE_BYTES:,} bytes")
    return io.BytesIO(data)


def _check(header: "Dataset", max_pixels: int) -> None:
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise DiveError(f"holds {frames} frames; wants a file with one image")
    rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    if rows < 1 or columns < 1:
        raise DiveError(f"Rows is {rows} and Columns {columns}; wants both >= 1")
    if rows * columns > max_pixels:
        raise DiveError(
            f"has {columns} x {rows} pixels, the limit is {max_pixels:,} (decompression bomb?)"
        )


def _shown(header: "Dataset") -> np.ndarray:
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    interpretation = str(header.get("PhotometricInterpretation", ""))
    try:
        stored = header.pixel_array
    except RuntimeError as error:  # no plugin can decode this transfer syntax
        raise DiveError(
            f"{_first_line(error)}; decoders for compressed DICOM: "
            "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        ) from error
    if interpretation == "PALETTE COLOR":
        coloured = apply_color_lut(stored, header)
        return _to_8_bits(coloured, 8 * coloured.dtype.itemsize)
    if stored.ndim == 3:
        return _to_8_bits(stored, int(header.BitsStored))
    if not interpretation.startswith("MONOCHROME"):
        raise DiveError(
            f"PhotometricInterpretation is {interpretation!r}; wants MONOCHROME1, MONOCHROME2, "
            "RGB, YBR_* or PALETTE COLOR"
        )
    padding = _padding(header, stored)
    values = apply_modality_lut(stored, header).astype(np.float64)
    unit = _unit(header, values, padding)
    if interpretation == "MONOCHROME1":
        unit = 1.0 - unit
    shown = np.rint(unit * 255.0).astype(np.uint8)
    if padding is not None:
        shown[padding] = 0
    return shown


def _to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return values.astype(np.uint8)
    return np.rint(values * (255.0 / (2**bits - 1))).astype(np.uint8)


def _padding(header: "Dataset", stored: np.ndarray) -> np.ndarray | None:
    """Where the detector saw nothing: one stored value, or a range of them; None: nowhere."""
    if "PixelPaddingValue" not in header:
        return None
    first = int(header.PixelPaddingValue)
    last = int(header.get("PixelPaddingRangeLimit", first))
    mask = (stored >= min(first, last)) & (stored <= max(first, last))
    return mask if mask.any() and not mask.all() else None


def _unit(header: "Dataset", values: np.ndarray, padding: np.ndarray | None) -> np.ndarray:
    """Values to 0 ... 1 by VOI table, window, or their own range."""
    from pydicom.pixels import apply_voi

    tables = header.get("VOILUTSequence")
    if tables:
        bits = int(tables[0].LUTDescriptor[2])
        return apply_voi(np.rint(values).astype(np.int64), header).astype(np.float64) / (
            2**bits - 1
        )
    centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    if centre is not None and width is not None:
        return _windowed(values, centre, width, str(header.get("VOILUTFunction") or "LINEAR"))
    seen = values if padding is None else values[~padding]
    low, high = float(seen.min()), float(seen.max())
    unit = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.clip(unit, 0.0, 1.0)


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """DICOM PS3.3 C.11.2: the window's ends become 0 and 1."""
    if not np.isfinite(centre) or not np.isfinite(width) or width <= 0:
        raise DiveError(f"WindowWidth is {width} and WindowCenter {centre}; wants a width above 0")
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))
    if function == "LINEAR_EXACT":
        unit = (values - centre) / width + 0.5
    elif width == 1.0:
        unit = (values > centre - 0.5).astype(np.float64)
    else:
        unit = (values - (centre - 0.5)) / (width - 1.0) + 0.5
    return np.clip(unit, 0.0, 1.0)


def _first(value: Any) -> float | None:
    """Of several windows the first; headers hold one number or a list."""
    if value is None or isinstance(value, str):
        return None
    try:
        return float(value)
    except TypeError:
        return float(value[0]) if len(value) else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
