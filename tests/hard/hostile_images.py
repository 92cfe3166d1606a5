"""Images that say they are what they are not, or that hold a thousand times what they weigh."""

import gzip
import io
import os
import random
import struct
import zlib
from pathlib import Path

from tests.hard.hostile_base import Base, Maker


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _zeros(megabytes: int, packer: "zlib._Compress | None" = None) -> bytes:
    """Deflated zeros: a thousandth of what they are."""
    packer = zlib.compressobj(9) if packer is None else packer
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def _png(wide: int, high: int, *chunks: bytes, bits: int = 8, colour: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", wide, high, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + b"".join(chunks) + _chunk(b"IEND", b"")


def png(rng: random.Random, place: Path, base: Base) -> list[str]:
    path, many = place / "film.png", rng.choice((300, 1200))
    side = rng.choice((20_000, 65_535, 2**31 - 1))
    whole = _chunk(b"IDAT", zlib.compress(bytes(9 * 8)))
    kind = rng.randrange(5)
    if kind == 0:
        data = _png(side, side, _chunk(b"IDAT", _zeros(many)))
    elif kind == 1:
        data = _png(side, side, whole, bits=16, colour=2)
    elif kind == 2:  # text behind the size and before the pixels
        text = rng.choice((b"zTXt", b"iTXt"))
        front = b"a\0\0" if text == b"zTXt" else b"a\0\1\0\0\0"
        data = _png(8, 8, _chunk(text, front + _zeros(many)), whole[:-6])
    elif kind == 3:
        data = _png(8, 8, _chunk(b"iCCP", b"a\0\0" + _zeros(many)), whole[:-9])
    else:  # a chunk that says it is longer than the file
        data = _png(8, 8, struct.pack(">I", 2**31 - 1) + b"tEXt" + b"a\0")
    path.write_bytes(data)
    return base.generate(place, path)


def other(rng: random.Random, place: Path, base: Base) -> list[str]:
    """JPEG, GIF, WebP, BMP, PPM and JPEG 2000 of sizes that nobody has; SVG; PostScript."""
    side = rng.choice((30_000, 65_500))
    sizes = {
        "jpg": b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", side, side)
        + b"\3\1\x22\0\2\x11\1\3\x11\1\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0" + bytes(100),
        "gif": b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
        + b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\2\2\x4c\1\0\x3b",
        "webp": b"RIFF\x24\0\0\0WEBPVP8L\x18\0\0\0\x2f" + b"\xff\xff\xff\x0f" + bytes(20),
        "bmp": b"BM" + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 1, 1, 0, 0) + bytes(46),
        "ppm": f"P6 {side} {side} 255\n".encode() + bytes(100),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='99999999' height='99999999'/>",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n{} loop\n",
        "jp2": b"\xff\x4f\xff\x51" + struct.pack(
            ">HHIIIIIIIIHBBB", 41, 0, side, side, 0, 0, side, side, 0, 0, 1, 7, 1, 1
        ) + bytes(60),
    }  # fmt: skip
    ending = rng.choice(sorted(sizes))
    path = place / f"film.{ending}"
    path.write_bytes(sizes[ending])
    return base.generate(place, path)


def tiff(rng: random.Random, place: Path, base: Base) -> list[str]:
    """Tags that lie about sizes, strips and counts."""
    side = 64
    values = {256: (4, 1, side), 257: (4, 1, side), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
              273: (4, 1, 200), 277: (3, 1, 1), 278: (4, 1, side), 279: (4, 1, 100)}  # fmt: skip
    kind = rng.randrange(6)
    if kind == 0:
        values[256] = values[257] = (4, 1, rng.choice((2**16, 2**31 - 1)))
    elif kind == 1:
        values[273] = (4, 1, rng.choice((2**31, 2**32 - 1)))
    elif kind == 2:
        values[rng.choice((258, 273, 279))] = (4, rng.choice((2**20, 2**30, 2**32 - 1)), 8)
    elif kind == 3:
        values[259] = (3, 1, rng.choice((5, 7, 8, 32773)))
    elif kind == 4:
        values[277] = (3, 1, 65_535)
    else:
        values |= {tag: (7, 2**31, 8) for tag in range(50_000, 50_100)}
    tags = b"".join(struct.pack("<HHII", tag, *values[tag]) for tag in sorted(values))
    data = b"II*\0" + struct.pack("<IH", 8, len(values)) + tags + bytes(4)
    path = place / "film.tif"
    path.write_bytes(data + bytes(max(0, 300 - len(data))))
    return base.generate(place, path)


def dicom(rng: random.Random, place: Path, base: Base) -> list[str]:
    """Deflated, gzipped, or compressed by frames; more of it, or less, than it says."""
    import numpy as np
    from pydicom import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    syntax = {
        "deflated": "1.2.840.10008.1.2.1.99", "gz": "1.2.840.10008.1.2.1",
        "rle": "1.2.840.10008.1.2.5", "jpeg": "1.2.840.10008.1.2.4.50",
        "j2k": "1.2.840.10008.1.2.4.90", "short": "1.2.840.10008.1.2.1",
        "endless": "1.2.840.10008.1.2.1",
    }  # fmt: skip
    kind = rng.choice(sorted(syntax))
    made, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = syntax[kind]
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    made.file_meta = meta
    made.Rows = made.Columns = 8
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.SamplesPerPixel, made.PixelRepresentation = 7, 1, 0
    made.PhotometricInterpretation = "MONOCHROME2"
    path = place / ("film.dcm.gz" if kind == "gz" else "film.dcm")
    many = rng.choice((1200, 3000))
    if kind in ("rle", "jpeg", "j2k"):
        side = rng.choice((20_000, 60_000))
        lies = {
            "rle": struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 2_000_000,
            "jpeg": b"\xff\xd8\xff\xc0\0\x0b\x08" + struct.pack(">HH", side, side)
            + b"\1\1\x11\0\xff\xda\0\x08\1\1\0\0\x3f\0" + bytes(100),
            "j2k": b"\xff\x4f\xff\x51" + struct.pack(
                ">HHIIIIIIIIHBBB", 41, 0, side, side, 0, 0, side, side, 0, 0, 1, 7, 1, 1
            ) + bytes(60),
        }  # fmt: skip
        made.PixelData = encapsulate([lies[kind]])
        made["PixelData"].VR = "OB"
    else:
        pixels = bytes(64) if kind == "deflated" else np.arange(60, dtype=np.uint8).tobytes()
        made.PixelData = pixels
        made["PixelData"].VR = "OB"
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    data = file.getvalue()
    if kind == "deflated":
        start = 144 + int.from_bytes(data[140:144], "little")
        more = struct.pack("<HH2sHI", 0x7FE1, 0x10, b"OB", 0, many << 20)
        raw = zlib.decompress(data[start:], -15)
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        front = packer.compress(raw + more)
        data = data[:start] + front + _zeros(many, packer)
    elif kind == "gz":
        data = gzip.compress(data[:200], 1) + _zeros(many, zlib.compressobj(9, zlib.DEFLATED, 31))
    path.write_bytes(data)
    if kind == "endless":  # elements of zeros without end
        path.write_bytes(data[: 144 + int.from_bytes(data[140:144], "little")])
        os.truncate(path, rng.choice((1 << 28, 1 << 40)))
    return base.generate(place, path)


def no_image(rng: random.Random, place: Path, base: Base) -> list[str]:
    """A pipe, a folder, or terabytes of nothing."""
    path = place / rng.choice(("film.png", "film.dcm", "film.tif", "film", "film.dcm.gz"))
    kind = rng.randrange(3)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    else:
        path.write_bytes(b"\x89PNG\r\n\x1a\n" if path.suffix != ".tif" else b"II*\0\x08\0\0\0")
        os.truncate(path, rng.choice((1 << 31, 1 << 40)))
    return base.generate(place, path)


IMAGES: tuple[Maker, ...] = (png, other, tiff, dicom, no_image)
