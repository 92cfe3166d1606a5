"""Grey TIFF files that Pillow can unpack, but does not identify."""

from typing import Any

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from dive.data.images.bounds import check_pixels
from dive.errors import DiveError

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WIDE = ("I", "I;16", "I;16B", "F")
_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class _GreyTiff(TiffImagePlugin.TiffImageFile):
    """A TIFF file that is opened as a similar kind with the same bits; its tags stay the same."""

    def _setup(self) -> None:
        tags: Any = self.tag_v2
        own = {tag: tags.get(tag) for tag in (_PHOTOMETRIC, _SAMPLE_FORMAT)}
        prefix = tags._prefix
        if own[_PHOTOMETRIC] == 0:  # white is zero
            tags[_PHOTOMETRIC] = 1
        if tags.get(_BITS) == (32,) and own[_SAMPLE_FORMAT] in (None, (1,)) and prefix == b"MM":
            tags[_SAMPLE_FORMAT] = (2,)  # read as signed
        if tags.get(_BITS) == (12,):
            tags._prefix = b"II"  # values are packed bit by bit, whatever the byte order
        try:
            super()._setup()
        finally:
            tags._prefix = prefix
            for tag, value in own.items():
                if value is not None:
                    tags[tag] = value
                elif tag in tags:
                    del tags[tag]
        if own[_PHOTOMETRIC] == 0 and self.mode not in _WIDE:  # nothing inverts these
            raise SyntaxError(f"white is zero, of {self.mode}")


def open_image(file: Any, name: str, most: int) -> Image.Image:
    """`Image.open` that also opens the files described above.

    Raises:
        DiveError: a TIFF file of an unsupported kind, named by its tags; PostScript; a WebP file
            of more than `most` pixels.
    """
    if hasattr(file, "seek"):
        _check_start(file, name, most)
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if not hasattr(file, "seek"):
            raise
        file.seek(0)
        if file.read(4) not in _STARTS:
            raise
    file.seek(0)
    try:
        return _GreyTiff(file)
    except SyntaxError as error:
        file.seek(0)
        raise DiveError(f"{name} is {_kind(file)}, which cannot be read ({error})") from error


def _check_start(file: Any, name: str, most: int) -> None:
    """Refuse files that Pillow would run, or allocate memory for, when it opens them."""
    start = file.read(32)
    file.seek(0)
    if start.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        raise DiveError(f"{name} is PostScript, a program, want PNG, JPEG or DICOM")
    if start[:4] != b"RIFF" or start[8:12] != b"WEBP":
        return
    kind, body = start[12:16], start[20:]
    if kind == b"VP8X":
        wide, high = (1 + int.from_bytes(body[i : i + 3], "little") for i in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        wide, high = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        wide, high = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
    check_pixels(wide, high, most, f"{name} has")


def _kind(file: Any) -> str:
    try:
        start = file.read(8)
        tags: Any = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        bits = "/".join(str(one) for one in tags.get(_BITS, (1,)))
        order = "big" if tags.prefix == b"MM" else "little"
        return (
            f"a TIFF file of {bits} bits, {order}-endian, PhotometricInterpretation "
            f"{tags.get(_PHOTOMETRIC)}, SampleFormat {tags.get(_SAMPLE_FORMAT, (1,))[0]}"
        )
    except (OSError, SyntaxError, ValueError, TypeError, EOFError):
        return "a damaged TIFF file"
