"""Checks of a DICOM header, and the functional groups of enhanced files."""

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dive.errors import DiveError

if TYPE_CHECKING:
    from pydicom import Dataset

log = logging.getLogger(__name__)

_NEEDED = ("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
           "PixelRepresentation")  # fmt: skip
_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence")
_MEANT = ("RescaleSlope", "RescaleIntercept", "VOILUTSequence", "WindowCenter", "WindowWidth",
          "VOILUTFunction", "PixelSpacing")  # fmt: skip
_SQUARE = 1.02  # ratio of the sides up to which pixels look square
_WHOLE = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored",
          "HighBit", "PixelRepresentation", "PixelPaddingValue",
          "PixelPaddingRangeLimit")  # fmt: skip
_NUMBERS = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "PixelSpacing",
            "ImagerPixelSpacing", "PixelAspectRatio")  # fmt: skip
_OF_ITEMS = ("VOILUTSequence", "ModalityLUTSequence", "SharedFunctionalGroupsSequence",
             "PerFrameFunctionalGroupsSequence")  # fmt: skip
_COLOURS = re.compile(r"MONOCHROME[12]|RGB|YBR_\w+|PALETTE COLOR")


def check_values(header: "Dataset") -> None:
    """Raise DiveError for an element of a wrong type, without its value, which may be private."""
    for name in (*_WHOLE, *_NUMBERS, *_OF_ITEMS, "PhotometricInterpretation", "VOILUTFunction"):
        wanted = "a value of its type"
        try:
            value: Any = header.get(name)  # pydicom converts the value here
            if value is None or (isinstance(value, str) and not value.strip()):
                continue
            if name in _WHOLE:
                wanted = "a whole number"
                int(value)
            elif name in _NUMBERS:
                wanted = "numbers"
                several = isinstance(value, Sequence) and not isinstance(value, str)
                for one in value if several else [value]:
                    float(one or 0)
            elif name in _OF_ITEMS:
                wanted = "a sequence"
                list(value[0].keys() if len(value) else ())
        except Exception as error:  # a broken element can raise anything
            log.info("%s: %s", name, error)
            raise DiveError(f"{name} holds something else than {wanted}") from None


def check_elements(header: "Dataset") -> None:
    """Raise DiveError for a missing or blank element that the pixels cannot be read without."""
    missing = [name for name in _NEEDED if header.get(name) in (None, "")]
    if not getattr(header.file_meta, "TransferSyntaxUID", None):
        missing.append("TransferSyntaxUID")
    if missing:
        raise DiveError(f"has no {', '.join(missing)}, without which its pixels cannot be read")
    if not _COLOURS.fullmatch(str(header.PhotometricInterpretation)):
        raise DiveError(
            "PhotometricInterpretation is another value, want MONOCHROME1, MONOCHROME2, RGB, "
            "YBR_* or PALETTE COLOR"
        )


def take_groups(header: "Dataset") -> None:
    """Copy the functional groups of a file with one frame to where other files have their elements.

    First the groups shared by all frames, then those of the first; existing elements stay.
    """
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        outer: Any = header.get(groups)
        if not outer:
            continue
        for group in _GROUPS:
            inner = outer[0].get(group)
            # the parts of a window belong together: all are copied, or none
            if not inner or any(_there(header, name) for name in _MEANT if name in inner[0]):
                continue
            for name in _MEANT:
                if name in inner[0]:
                    setattr(header, name, inner[0][name].value)


def _there(header: "Dataset", name: str) -> bool:
    return header.get(name) not in (None, "")


def odd_pixels(header: "Dataset") -> str:
    """What is wrong with the shape of the pixels, as text; "" for square ones."""
    for name in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):
        given: Any = header.get(name)
        if given is None or isinstance(given, str) or len(given) != 2:
            continue
        high, wide = float(given[0]), float(given[1])
        if high > 0 and wide > 0 and max(high / wide, wide / high) > _SQUARE:
            return (
                f"has the {name} {high:g} to {wide:g}: its pixels are not square, and are "
                "treated as if they were"
            )
    return ""
