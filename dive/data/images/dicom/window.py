"""The brightness of the values of a DICOM file: by VOI table, window, or their own range."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dive.data.images.dicom.tables import table_of
from dive.errors import DiveError

if TYPE_CHECKING:
    from pydicom import Dataset

OWN = "its own range"


def unit_range(
    header: "Dataset", values: np.ndarray, seen: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, str]:
    """Scales values to 0 ... 1 by VOI table, window, or the range of `seen`; and the name of it."""
    tables = header.get("VOILUTSequence")
    if tables:
        table = table_of(tables[0], header, "the VOI table", notes)
        by = f"the VOI table ({table.bits} bits, entries up to {table.entries.max()})"
        return table.of(np.rint(values)) / (2.0**table.bits - 1), by
    centre, width = (
        first_number(header.get("WindowCenter")),
        first_number(header.get("WindowWidth")),
    )
    if centre is not None and width is not None:
        function = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
        by = f"the window (WindowCenter {centre:g}, WindowWidth {width:g})"
        return _windowed(values, centre, width, function), by
    low, high = float(seen.min()), float(seen.max())
    unit = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.clip(unit, 0.0, 1.0), OWN


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Applies a window (DICOM PS3.3 C.11.2): its ends become 0 and 1."""
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise DiveError("VOILUTFunction is another value, want LINEAR, LINEAR_EXACT or SIGMOID")
    if not np.isfinite(centre) or not np.isfinite(width) or width <= 0:
        raise DiveError(f"WindowWidth is {width} and WindowCenter {centre}, want a width above 0")
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))
    if function == "LINEAR_EXACT":
        unit = (values - centre) / width + 0.5
    elif width < 1.0:  # the formula would invert the image
        raise DiveError(
            f"WindowWidth is {width} and VOILUTFunction LINEAR, want a width of 1 or more"
        )
    elif width == 1.0:
        unit = (values > centre - 0.5).astype(np.float64)
    else:
        unit = (values - (centre - 0.5)) / (width - 1.0) + 0.5
    return np.clip(unit, 0.0, 1.0)


def first_number(value: Any) -> float | None:
    """A number, the first of a list (of windows), or None for a missing or blank element."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return float(value)
    except TypeError:
        return first_number(value[0]) if len(value) else None
