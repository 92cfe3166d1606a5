"""What a DICOM header must have, and what enhanced files keep in groups beside it."""

from typing import TYPE_CHECKING, Any

from dive.errors import DiveError

if TYPE_CHECKING:
    from pydicom import Dataset

_NEEDED = ("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
           "PixelRepresentation")  # fmt: skip
_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence")
_MEANT = ("RescaleSlope", "RescaleIntercept", "VOILUTSequence", "WindowCenter", "WindowWidth",
          "VOILUTFunction", "PixelSpacing")  # fmt: skip
_SQUARE = 1.02  # pixels of which one side is longer by no more are square to the eye


def check_elements(header: "Dataset") -> None:
    """DiveError for what tells how pixels are kept, and is missing or blank."""
    missing = [name for name in _NEEDED if header.get(name) in (None, "")]
    if not getattr(header.file_meta, "TransferSyntaxUID", None):
        missing.append("TransferSyntaxUID")
    if missing:
        raise DiveError(f"has no {', '.join(missing)}, without which pixels cannot be told")


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
