"""Conversion of the studies that a caller passes, in any form, to checked `Study` objects.

`as_studies_of` takes studies, records and datasets; `as_studies` takes images, too, as
`dive.generate` does.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dive.data.absent import counts_text
from dive.data.datasets.json_lines import Skipped
from dive.data.open import names_studies, open_studies
from dive.data.reading_summary import PLACEHOLDERS
from dive.data.skipping import Skipping
from dive.data.study import Study
from dive.errors import DiveError, checks

log = logging.getLogger(__name__)

ImageLike = str | Path | Image.Image
Item = Study | ImageLike | Sequence[ImageLike]


def as_studies(
    items: Item | Iterable[Item], on_error: str = "fail", skipped: Skipped | None = None
) -> list[Study]:
    """Converts everything that `generate` takes to studies; image files are not opened."""
    listed = items if isinstance(items, (list, tuple)) and items else [None]
    if (
        names_studies(items)
        or isinstance(items, Mapping)
        or hasattr(items, "column_names")
        or all(isinstance(one, Mapping) for one in listed)
    ):
        # a report that is to be generated need not exist: no section is required
        return as_studies_of(items, "studies", None, on_error=on_error, skipped=skipped)
    if isinstance(items, (Study, str, Path, Image.Image)):
        items = [items]
    if not isinstance(items, Iterable):
        raise DiveError(
            f"got a {type(items).__name__}, want a path, a PIL image, a Study, or several of these"
        )
    return [_as_study(item, number) for number, item in enumerate(items)]


def _as_study(item: Item, number: int) -> Study:
    if isinstance(item, Study):
        return item
    images = list(item) if isinstance(item, Sequence) and not isinstance(item, str) else [item]
    for image in images:
        if not isinstance(image, (str, Path, Image.Image)):
            raise DiveError(
                f"item {number} is a {type(image).__name__}, want a path, a PIL image, a Study, "
                "or a sequence of images of one study"
            )
    if not images:
        raise DiveError(f"item {number} is an empty sequence, want one image or more")
    name = f"image-{number}" if isinstance(images[0], Image.Image) else str(images[0])
    kept = tuple(Path(image) if isinstance(image, str) else image for image in images)
    return Study(id=name, images=kept)


def as_studies_of(
    given: Any,
    name: str,
    target: str | None,
    *,
    wanted: str = "a list of studies",
    on_error: str = "fail",
    skipped: Skipped | None = None,
) -> list[Study]:
    """Converts to studies: one, several, a file or dataset as on the command line, or dicts.

    Raises:
        DiveError: `given` is something else; names the argument (`name`) and its value.
    """
    options: dict[str, Any] = {"target": target, "on_error": on_error, "skipped": skipped}
    if isinstance(given, Study):
        given = [given]
    wanted += ", or a file or dataset of them as the command line takes it"
    named = checks.names_a_path(given)
    if named and not names_studies(given) and not checks.path(name, given).exists():
        raise DiveError(f"{name} is {str(given)!r}, want {wanted} (there is no such file)")
    if named or isinstance(given, Mapping) or hasattr(given, "column_names"):
        return list(open_studies(given, **options))
    if not isinstance(given, Iterable) or isinstance(given, (bytes, bytearray)):
        raise DiveError(f"{name} is {_what(given)}, want {wanted}")
    found = list(given)
    if found and all(isinstance(one, Mapping) for one in found):
        return list(open_studies(found, **options))
    for number, one in enumerate(found):
        if not isinstance(one, Study):
            raise DiveError(f"{name} has a {type(one).__name__} as item {number}, want studies")
    return _sound(found, name, Skipping(on_error, skipped))


def _what(given: Any) -> str:
    """A number or None itself; the type of anything else, which may be private."""
    plain = given is None or isinstance(given, (int, float))
    return repr(given) if plain else f"a {type(given).__name__}"


def _sound(studies: list[Study], name: str, skipping: Skipping) -> list[Study]:
    """The studies whose fields have the right types and whose ids are unique."""
    kept: list[Study] = []
    first: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for number, one in enumerate(studies):
        try:
            one.check()
            if one.id in first:
                raise DiveError(
                    f"{one.where}: item {number} of {name} has the id of item {first[one.id]}, "
                    "want every study once"
                )
        except DiveError as error:
            skipping.skip_or_raise(one.id if isinstance(one.id, str) else None, one.source, error)
            continue
        first[one.id] = number
        counts.update(one.placeholders.keys())
        kept.append(one)
    if counts:
        log.warning("%s: %s taken as absent (%s)", name, counts_text(counts), PLACEHOLDERS)
    return kept


def as_demonstrations(given: Any, target: str) -> Any:
    """Converts the argument `demonstrations` to None, a number of studies, or studies."""
    if given is None or checks.is_whole(given):
        return None if given is None else int(given)
    wanted = "a whole number or a list of studies"
    return as_studies_of(given, "demonstrations", target, wanted=wanted)
