"""Writers of image files that Pillow reads and does not write."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np


def write_png16(
    path: Path, values: np.ndarray, key: tuple[int, ...] = (), exif: bytes = b""
) -> Path:
    """A PNG file of 16 bits a channel: uint16 [H, W, C], of grey, grey and alpha, RGB or RGBA;
    exif stands behind the pixels."""
    height, width, channels = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    if key:
        parts.append((b"tRNS", struct.pack(f">{len(key)}H", *key)))
    parts.append((b"IDAT", zlib.compress(rows.tobytes())))
    parts += [(b"eXIf", exif)] if exif else []
    parts.append((b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in parts
        )
    )
    return path


def write_tiff(path: Path, values: np.ndarray, photometric: int, **options: Any) -> Path:
    """A TIFF file of one strip, [H, W] or [H, W, C].

    options: order ("<" or ">"), packed (deflate), alpha (ExtraSamples of the last channel), planar
    (channel after channel), bits (12: packed bit by bit, of an even width).
    """
    order, packed = options.get("order", "<"), options.get("packed", False)
    channels = 1 if values.ndim == 2 else values.shape[2]
    sample = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    stored = np.moveaxis(values, -1, 0) if options.get("planar") else values
    data = stored.astype(values.dtype.newbyteorder(order)).tobytes()
    if options.get("bits") == 12:
        one, two = stored.reshape(-1, 2).T
        pair = np.stack([one >> 4, (one & 15) << 4 | two >> 8, two & 255], -1)
        data = pair.astype(np.uint8).tobytes()
    parts = [data]
    if options.get("planar"):
        parts = [
            data[i * len(data) // channels :][: len(data) // channels] for i in range(channels)
        ]
    if packed:
        parts = [zlib.compress(part) for part in parts]
    offsets = [8 + sum(map(len, parts[:i])) for i in range(len(parts))]
    bits = options.get("bits", 8 * values.dtype.itemsize)
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [values.shape[1]]), 257: ("I", [values.shape[0]]),
        258: ("H", [bits] * channels), 259: ("H", [8 if packed else 1]),
        262: ("H", [photometric]), 273: ("I", offsets), 277: ("H", [channels]),
        278: ("I", [values.shape[0]]), 279: ("I", [len(part) for part in parts]),
        284: ("H", [2 if options.get("planar") else 1]), 339: ("H", [sample] * channels),
    }  # fmt: skip
    if "alpha" in options:
        tags[338] = ("H", [options["alpha"]])
    body = b"".join(parts) + b"\0" * (sum(map(len, parts)) % 2)
    table, behind = b"", b""
    start = 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag, (kind, numbers) in sorted(tags.items()):
        raw = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        if len(raw) > 4:
            place = struct.pack(f"{order}I", start + len(behind))
            behind += raw + b"\0" * (len(raw) % 2)
            raw = place
        table += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(numbers))
        table += raw.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(body))
    table = struct.pack(f"{order}H", len(tags)) + table + b"\0" * 4
    path.write_bytes(head + body + table + behind)
    return path
