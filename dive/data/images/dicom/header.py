"""What a DICOM header must have, and what enhanced files keep in groups beside it."""

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
_SQUARE = 1.02  # pixels of which one side is longer by no more are square to the eye
_WHOLE = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored",
          "HighBit", "PixelRepresentation", "PixelPaddingValue",
          "PixelPaddingRangeLimit")  # fmt: skip
_NUMBERS = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "PixelSpacing",
            "ImagerPixelSpacing", "PixelAspectRatio")  # fmt: skip
_OF_ITEMS = ("VOILUTSequence", "ModalityLUTSequence", "SharedFunctionalGroupsSequence",
             "PerFrameFunctionalGroupsSequence")  # fmt: skip
_COLOURS = re.compile(r"MONOCHROME[12]|RGB|YBR_\w+|PALETTE COLOR")


def check_values(header: "Dataset") -> None:
    """DiveError for an element of another kind, by its name: what stands there may be anybody's."""
    for name in (*_WHOLE, *_NUMBERS, *_OF_ITEMS, "PhotometricInterpretation", "VOILUTFunction"):
        wanted = "what belongs there"
        try:
            value: Any = header.get(name)  # what was read is made a value of its kind here
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
        except Exception as error:  # whatever the broken element leads to
            log.info("%s: %s", name, error)
            raise DiveError(f"{name} holds something else than {wanted}") from None


def check_elements(header: "Dataset") -> None:
    """DiveError for what tells how pixels are kept, and is missing or blank."""
    missing = [name for name in _NEEDED if header.get(name) in (None, "")]
    if not getattr(header.file_meta, "TransferSyntaxUID", None):
        missing.append("TransferSyntaxUID")
    if missing:
        raise DiveError(f"has no {', '.join(missing)}, without which pixels cannot be told")
    if not _COLOURS.fullmatch(str(header.PhotometricInterpretation)):
        raise DiveError(
            "PhotometricInterpretation is something else; wants MONOCHROME1, MONOCHROME2, RGB, "
            "YBR_* or PALETTE COLOR"
        )


def take_groups(header: "Dataset") -> None:
    """Put what the functional groups of a file with one frame say where other files have it: those
    shared by all frames, then those of the first; what is there already stays."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        outer: Any = header.get(groups)
        if not outer:
            continue
        for group in _GROUPS:
            inner = outer[0].get(group)
            # a window's parts belong together: of none or of all
            if not inner or any(_there(header, name) for name in _MEANT if name in inner[0]):
                continue
            for name in _MEANT:
                if name in inner[0]:
                    setattr(header, name, inner[0][name].value)


def _there(header: "Dataset", name: str) -> bool:
    return header.get(name) not in (None, "")


def odd_pixels(header: "Dataset") -> str:
    """What is wrong with the shape of the pixels, in words; "" for square ones."""
    for name in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):
        given: Any = header.get(name)
        if given is None or isinstance(given, str) or len(given) != 2:
            continue
        high, wide = float(given[0]), float(given[1])
        if high > 0 and wide > 0 and max(high / wide, wide / high) > _SQUARE:
            return (
                f"has the {name} {high:g} to {wide:g}: its pixels are not square, and are "
                "taken as if they were"
            )
    return ""
