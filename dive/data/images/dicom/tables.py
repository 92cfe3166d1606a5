"""Lookup tables of DICOM files, whose entries do not always match their descriptor."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dive.data.images.deep_colour import depth_of
from dive.errors import DiveError

if TYPE_CHECKING:
    from pydicom import Dataset

_COLOURS = ("Red", "Green", "Blue")


class Table(NamedTuple):
    """A lookup table.

    first: the value of the first entry. entries: int64 [N]. bits: depth of the entries.
    """

    first: int
    entries: np.ndarray
    bits: int

    def of(self, values: np.ndarray) -> np.ndarray:
        """The entries for integer values, int64; values outside get the first or the last one."""
        first = self.first
        if first >> 15 and values.min() < 0 and values.max() < first:
            first -= 1 << 16  # a signed value written as unsigned
        indices = np.clip(values.astype(np.int64) - first, 0, len(self.entries) - 1)
        return self.entries[indices]


def table_of(item: "Dataset", header: "Dataset", name: str, notes: list[str]) -> Table:
    """The table of an item of a modality or VOI sequence.

    Raises:
        DiveError: descriptor or data are missing, or do not fit together.
    """
    return _table(item, "LUTDescriptor", "LUTData", header, name, notes)


def coloured(stored: np.ndarray, header: "Dataset", notes: list[str]) -> np.ndarray:
    """Applies the palette of the file to stored values: 0 to 1, [H, W, 3].

    Raises:
        DiveError: as `table_of`.
    """
    name = "{}PaletteColorLookupTable{}"
    if header.get("SegmentedRedPaletteColorLookupTableData") is not None:
        return _segmented(stored, header)
    found = []
    for colour in _COLOURS:
        table = _table(
            header, name.format(colour, "Descriptor"), name.format(colour, "Data"), header,
            f"the palette's {colour.lower()} table", notes,
        )  # fmt: skip
        found.append(table)
    # one scale for all three, so that a dark colour stays dark
    top = 2 ** max(table.bits for table in found) - 1
    return np.stack([table.of(stored) for table in found], -1) / top


def _segmented(stored: np.ndarray, header: "Dataset") -> np.ndarray:
    from pydicom.pixels import apply_color_lut

    count, _, bits = _descriptor(
        header, "RedPaletteColorLookupTableDescriptor", "the palette's red table"
    )
    if bits not in (8, 16) or (bits == 8 and count > 256):
        raise DiveError(
            f"the segmented palette has {count:,} entries of {bits} bits, want 16 bits, or 8 and "
            "at most 256 entries"
        )
    return apply_color_lut(stored, header)[..., :3] / (2.0**bits - 1)


def _descriptor(item: "Dataset", name: str, table: str) -> tuple[int, int, int]:
    """(number of entries, value of the first, bits)."""
    given: Any = item.get(name)
    if given is None or isinstance(given, (str, bytes)) or len(given) != 3:
        has = "no" if given is None else "something else as its"
        raise DiveError(f"{table} has {has} {name}, want three numbers")
    count, first, bits = (int(one) for one in given)
    count &= 0xFFFF  # some files have it as a signed number
    if not 1 <= bits <= 16:
        raise DiveError(
            f"{table} has the {name} {[count, first, bits]}, want entries of 8 to 16 bits"
        )
    return count or 1 << 16, first, bits


def _table(
    item: "Dataset", descriptor: str, data: str, header: "Dataset", name: str, notes: list[str]
) -> Table:
    """The table with entries of bytes or words, by the number of bytes (DICOM PS3.3 C.11.1.1.1).

    Entries of 8 bits are often stored as words.
    """
    count, first, bits = _descriptor(item, descriptor, name)
    if item.get(data) is None:
        raise DiveError(f"{name} has no {data}")
    raw = _bytes(item[data].value, header, item[data].VR)
    if 2 * count <= len(raw) <= 2 * count + 2:
        entries = np.frombuffer(raw[: 2 * count], "<u2").astype(np.int64)
    elif count <= len(raw) <= count + 1:
        entries = np.frombuffer(raw[:count], np.uint8).astype(np.int64)
        if bits > 8:
            notes.append(f"says that {name} has {bits} bits, and it is stored in 8: read as those")
            bits = 8
    else:
        raise DiveError(
            f"{name} has {count:,} entries and {len(raw):,} bytes, want one or two bytes per entry"
        )
    largest = int(entries.max())
    if largest >> bits:
        notes.append(
            f"says that {name} has {bits} bits, and its entries go up to {largest}: read as "
            f"{depth_of(largest)} bits"
        )
        bits = depth_of(largest)
    return Table(first, entries, bits)


def _bytes(value: Any, header: "Dataset", kind: str) -> bytes:
    """The data as bytes, little-endian."""
    if isinstance(value, (bytes, bytearray)):
        raw = bytes(value)
        if kind == "OW" and not header.file_meta.TransferSyntaxUID.is_little_endian:
            raw = np.frombuffer(raw[: len(raw) // 2 * 2], ">u2").astype("<u2").tobytes()
        return raw
    numbers = value if isinstance(value, Sequence) or hasattr(value, "__len__") else [value]
    return (np.asarray([int(one) for one in numbers]) & 0xFFFF).astype("<u2").tobytes()
