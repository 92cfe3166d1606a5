"""The stored values of a DICOM file, extracted from the allocated bits."""

from typing import TYPE_CHECKING

import numpy as np

from dive.errors import DiveError

if TYPE_CHECKING:
    from pydicom import Dataset

_RLE = "1.2.840.10008.1.2.5"  # packs bytes without changing values


def stored_values(header: "Dataset") -> tuple[np.ndarray, np.ndarray]:
    """Stored values, [H, W] or [H, W, 3], of `BitsStored` bits with their sign; and all bits.

    The second array has all allocated bits. Other bits (overlays, arbitrary bits of a device) are
    removed from the first; values that do not begin at the lowest bit are shifted there.

    Raises:
        DiveError: BitsAllocated, BitsStored and HighBit do not fit together, or, in a compressed
            file, do not fit the decoder's output; there are more pixels than one image has; a
            decoder for the compression is missing.
    """
    allocated, stored = int(header.BitsAllocated), int(header.BitsStored)
    high = header.get("HighBit")
    high = stored - 1 if high is None else int(high)
    low = high + 1 - stored
    bits = f"BitsAllocated is {allocated}, BitsStored {stored} and HighBit {high}"
    if not 1 <= stored <= allocated or low < 0 or high >= allocated:
        raise DiveError(f"{bits}, want BitsStored bits that end at HighBit, within those allocated")
    syntax = header.file_meta.TransferSyntaxUID
    native = not syntax.is_encapsulated or syntax == _RLE
    if low and not native:
        known = syntax.name if syntax.name != str(syntax) else "another syntax"
        raise DiveError(
            f"{bits}, and its pixels are compressed ({known}), where that is not "
            "possible, want HighBit = BitsStored - 1"
        )
    _check_length(header)
    # pydicom clears the bits above BitsStored, which may be bits of values, or hide others
    header.BitsStored = allocated
    try:
        values: np.ndarray = header.pixel_array
    except RuntimeError as error:  # no plugin can decode this transfer syntax
        first = (str(error).strip().splitlines() or ["RuntimeError"])[0]
        raise DiveError(
            f"{first}; decoders for compressed DICOM: "
            "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        ) from error
    finally:
        header.BitsStored = stored
    if values.shape[:2] != (int(header.Rows), int(header.Columns)):
        raise DiveError(f"holds {len(values)} frames, want a file with one image")
    if not native:
        _check_range(values, stored, bits)
    kept = values
    container = 8 * values.dtype.itemsize
    if stored < container and allocated > 1 and values.dtype.kind in "iu":
        # shifted up, which removes the bits above, and down again with the sign
        values = values << (container - 1 - high) >> (container - stored)
    return values, kept


def _check_range(values: np.ndarray, stored: int, bits: str) -> None:
    """Raise DiveError for values out of range: some decoders return signed values as unsigned."""
    low, high = int(values.min()), int(values.max())
    least = -(1 << (stored - 1)) if values.dtype.kind == "i" else 0
    if low < least or high >= 1 << stored:
        raise DiveError(f"{bits}, and decompressed values are from {low} to {high}")


def _check_length(header: "Dataset") -> None:
    """Raise DiveError for the pixels of two or more images under the header of one."""
    if header.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    count = int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel") or 1)
    wanted = count * int(header.BitsAllocated) // 8
    if str(header.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
        wanted = wanted * 2 // 3
    if wanted and len(header.PixelData) >= 2 * wanted + wanted % 2:
        raise DiveError(
            f"holds {len(header.PixelData):,} bytes of PixelData, and an image of "
            f"{header.Columns} x {header.Rows} has {wanted:,}, want a file with one image"
        )
