"""Digests of the films of a training, which show whether one was replaced before it is resumed.

A file counts by samples of its content (`dive.files.digests.film`), because reading 200,000 films
whole would take hours, and not by its times, because it may be a copy on another machine. An image
of a dataset object (`LazyImage`) counts by its name alone.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from dive.data.images.digests import digest_of_pixels
from dive.data.images.load import LazyImage
from dive.data.study import Study
from dive.errors import DiveError, checks
from dive.errors.counting import counted
from dive.files import digests

_READERS = 16  # threads: on a remote file system every read waits


def films_of(studies: Iterable[Study], but: Collection[str] = ()) -> dict[str, str]:
    """Digest of a study's id -> digest of its films, without the studies whose ids are in `but`."""
    chosen = list({id(one): one for one in studies if one.id not in but}.values())
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(_content, chosen)
        return {_key(one.id): film for one, film in zip(chosen, found, strict=True)}


def changed(earlier: Any, now: Mapping[str, str], but: Collection[str] = ()) -> str | None:
    """How many studies have other films than before, as text; None where none have.

    The studies in `but` do not count.
    """
    if not isinstance(earlier, dict):
        return "no word on its films (an earlier version of dive began it)"
    free = {_key(name) for name in but}
    others = [
        key
        for key in now.keys() & earlier.keys() - free
        if now[key] != earlier[key]  # a missing study is reported elsewhere
    ]
    return f"other films (of {counted(len(others), 'study')})" if others else None


def name_of(image: Path | Image.Image | LazyImage | str) -> str:
    """The name of a file; a digest of the content of an image in memory."""
    if isinstance(image, Image.Image):
        return digest_of_pixels(image)
    return str(image) if isinstance(image, LazyImage) else Path(image).name


def _key(name: str) -> str:
    return hashlib.sha256(str(name).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _content(study: Study) -> str:
    parts = []
    for image in study.images:
        if isinstance(image, Image.Image):
            parts.append(digest_of_pixels(image))
        elif checks.names_a_path(image):
            try:
                parts.append(digests.film(checks.path("the image", image)))
            except DiveError:
                parts.append("")  # the error about the name comes when the image is decoded
        else:
            parts.append(str(image))
    return digests.of_json(parts, 16)
