"""The films of a page: scaled, and embedded in it or in a folder beside it."""

import base64
import io
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from dive.data import Study
from dive.data.images.load import load_rgb
from dive.data.overwriting import check_not_read, films
from dive.errors import DiveError
from dive.files.atomic import check_folder, write_bytes
from dive.page.schema import Image as Film

MODES = ("embed", "beside", "none")
EDGE = 512  # pixels of the longer edge, as shown
# Bytes of all embedded films together: base64 adds a third, and the page stays under 30 MB beside
# the texts of 2,000 studies and five methods.
BUDGET = 12_000_000
_LADDER = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125)  # of the edge, until a film fits its share
_QUALITY = 72
_NAME = re.compile(r"\d{6,}\.jpg")


@dataclass(frozen=True)
class FilmOptions:
    """How films get onto the page.

    Attributes:
        mode: "embed" in the page, "beside" it in a folder, or "none".
        edge: pixels of the longer edge; larger films are scaled down, smaller ones are kept.
        budget: bytes of all embedded films; where they would take more, each gets an equal share
            and is scaled until it fits.
        folder: of the films "beside" the page, and beside it on the disk too.

    Raises:
        DiveError: a value out of range.
    """

    mode: str = "embed"
    edge: int = EDGE
    budget: int = BUDGET
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise DiveError(f"images is {self.mode!r}, want one of {', '.join(MODES)}")
        if self.mode != "beside" and self.folder is not None:
            raise DiveError(f"folder is {self.folder}, want none for images {self.mode!r}")
        if isinstance(self.edge, bool) or not isinstance(self.edge, int) or self.edge < 16:
            raise DiveError(f"image_size is {self.edge!r}, want a number of pixels, 16 or more")
        if self.mode == "beside" and self.folder is None:
            raise DiveError("folder is None, want one for the films beside the page")

    def check(self, studies: Sequence[Study]) -> None:
        """Raise DiveError where the folder cannot be written, or holds other files than an earlier
        page's films, or a film of these studies."""
        if self.folder is None:
            return
        check_folder(self.folder)
        earlier = list(self.folder.iterdir()) if self.folder.is_dir() else []
        if not all(_NAME.fullmatch(path.name) and path.is_file() for path in earlier):
            raise DiveError(
                f"{self.folder} holds other files than a page's films; name another page"
            )
        check_not_read(dict.fromkeys(earlier, "images beside the page"), films(studies))


@dataclass
class Films:
    """The films of all studies, and which are not as they were given.

    Attributes:
        by_study: per study, its films in order.
        warnings: of reading them: films without contrast ...
        missing: ids of the studies with a film that is gone or cannot be read.
        scaled_to: the smallest edge that a film was scaled to so that it fits its share, or None.
    """

    by_study: list[list[Film]]
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    scaled_to: int | None = None


def films_of(studies: Sequence[Study], options: FilmOptions) -> Films:
    """The films of every study.

    A film that is gone or damaged has no `src`; its study is in `missing`. Files beside the page
    are numbered: an id may hold anything.

    Raises:
        DiveError: the folder cannot be written.
    """
    if options.mode == "none":
        return Films([[] for _ in studies])
    options.check(studies)
    numbered = [(study, number) for study in studies for number in range(len(study.images))]
    share = options.budget // max(1, len(numbered)) if options.folder is None else None
    # a line per film would hide all else: the page has their number and the first one
    with (
        warnings.catch_warnings(record=True) as warned,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        warnings.simplefilter("always")
        made = list(pool.map(lambda one: _film(one[0], one[1], options.edge, share), numbered))
    if options.folder is not None:
        _clear(options.folder)
    found: dict[str, list[Film]] = {study.id: [] for study in studies}
    messages = [str(one.message) for one in warned]
    result = Films([found[study.id] for study in studies], warnings=messages)
    for total, ((study, number), jpeg) in enumerate(zip(numbered, made, strict=True)):
        film = Film(src=None, width=0, height=0, view=_view(study, number))
        if jpeg is None:
            if study.id not in result.missing:
                result.missing.append(study.id)
        else:
            film["width"], film["height"] = jpeg.size
            film["src"] = _source(jpeg.data, total, options.folder)
            if jpeg.shrunk:
                edge = max(jpeg.size)
                result.scaled_to = min(edge, result.scaled_to or edge)
        found[study.id].append(film)
    return result


@dataclass(frozen=True)
class _Jpeg:
    data: bytes
    size: tuple[int, int]
    shrunk: bool  # below the edge that was asked for


def _film(study: Study, number: int, edge: int, share: int | None) -> _Jpeg | None:
    """One film as JPEG of at most `share` bytes where possible; None where it cannot be read."""
    try:
        name = study.image_names[number]
        # twice the edge, so that what is decoded smaller is not seen
        image = load_rgb(study.images[number], study.where, name=name, edge=2 * edge)
    except DiveError:
        return None
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    red, green, blue = image.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        image = red  # a film is grey; a photograph of one keeps its colours
    whole = image.size
    for step in _LADDER:
        scaled = image
        if step < 1:
            size = max(1, round(whole[0] * step)), max(1, round(whole[1] * step))
            scaled = image.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        scaled.save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
        if share is None or buffer.tell() <= share:
            break
    return _Jpeg(buffer.getvalue(), scaled.size, step < 1)


def _source(data: bytes, number: int, folder: Path | None) -> str:
    if folder is None:
        return "data:image/jpeg;base64," + base64.b64encode(data).decode()
    name = f"{number:06d}.jpg"
    write_bytes(folder / name, data)
    return f"{quote(folder.name)}/{name}"


def _clear(folder: Path) -> None:
    """Make the folder, without an earlier page's films; `FilmOptions.check` has been passed."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _NAME.fullmatch(path.name):
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def _view(study: Study, number: int) -> str | None:
    return study.views[number] if number < len(study.views) else None
