"""Rows, tables and archives that are endless, bottomless, or no text."""

import gzip
import json
import os
import random
import zlib
from pathlib import Path

from tests.hard.hostile_base import Base, Maker


def _line(rng: random.Random) -> bytes:
    """A line that is no row."""
    deep = rng.choice((2000, 300_000))
    good = json.dumps({"id": "b", "images": ["film.png"], "report": "Clear.", "findings": "x"})
    return rng.choice(
        (
            b"[" * deep, b'{"a":' * deep, b'{"id": ' + b"[" * deep + b"]" * deep + b"}",
            b"\0" * 100, b"\xff\xfe\xfd", good.encode() + b"\0", b'{"id": ' + b"9" * 10**6 + b"}",
            b"{" + b",".join(b'"%d":1' % i for i in range(10**6)) + b"}", b'"' + b"a" * (64 << 20),
            good.encode().replace(b'"Clear."', b"NaN1"), b"[]", b"7", b"null",
            good.encode().replace(b'"b"', b'{"a": 1}'), good.encode().replace(b'"b"', b"true"),
        )
    )  # fmt: skip


def rows(rng: random.Random, place: Path, base: Base) -> list[str]:
    path = place / "rows.jsonl"
    kind = rng.randrange(4)
    if kind == 3:
        path.write_bytes(b"\n")
        os.truncate(path, rng.choice((3 << 30, 1 << 40)))  # one line of zeros
    else:
        path.write_bytes(base.reports.read_bytes() + _line(rng) + b"\n")
    (place / "film.png").write_bytes(base.image.read_bytes())
    if rng.random() < 0.5:
        return base.generate(place, "--studies", path)
    files = [str(path), str(base.reports)]
    rng.shuffle(files)
    return ["evaluate", "--predictions", files[0], "--references", files[1]]


def table(rng: random.Random, place: Path, base: Base) -> list[str]:
    """A dataset whose tables are bombs."""
    root = place / "data"
    root.mkdir()
    name = "df_chexpert_plus_240401.csv"
    kind = rng.randrange(5)
    head = b"path_to_image,section_findings\n"
    if kind == 0:
        data, name = gzip.compress(head) + _packed(rng.choice((500, 3000))), name + ".gz"
    elif kind == 1:
        data = b",".join(b"c%d" % i for i in range(10**6)) + b"\n" + b"," * (10**6 - 1)
    elif kind == 2:
        data = head + b'"' + b"a" * (100 << 20)
    elif kind == 3:
        data = head + b"\0" * 1000
    else:
        data = b"\0"
    (root / name).write_bytes(data)
    if kind == 4:
        os.truncate(root / name, 1 << 40)
    return base.generate(place, "--studies", f"chexpert-plus:{root}")


def _packed(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(b"a" * (1 << 20)) for _ in range(megabytes)) + packer.flush()


def xml(rng: random.Random, place: Path, base: Base) -> list[str]:
    """IU X-Ray's reports with entities of entities, or of files."""
    root = place / "iu"
    (root / "ecgen-radiology").mkdir(parents=True)
    levels = "".join(
        f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, rng.randrange(8, 12))
    )
    bomb = f'<!DOCTYPE x [<!ENTITY a0 "ha">{levels}]>'
    text = rng.choice(
        (
            f"{bomb}<eCitation><AbstractText Label='FINDINGS'>&a7;</AbstractText></eCitation>",
            '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/hostname">]><eCitation>&f;</eCitation>',
            "<a>" * 200_000,
            "<a " + " ".join(f'b{i}="1"' for i in range(200_000)),
        )
    )
    (root / "ecgen-radiology" / "1.xml").write_text(text)
    return base.generate(place, "--studies", f"iu-xray:{root}")


def annotation(rng: random.Random, place: Path, base: Base) -> list[str]:
    """R2Gen's one file of JSON."""
    path = place / "annotation.json"
    kind = rng.randrange(4)
    deep = rng.choice((3000, 500_000))
    path.write_bytes((b"[" * deep, b'{"train": ' + b"[" * deep, b'{"train": [7]}', b"{}")[kind])
    if kind == 3:
        os.truncate(path, 1 << 40)
    return base.generate(place, "--studies", f"r2gen:{path}")


TABLES: tuple[Maker, ...] = (rows, table, xml, annotation)
