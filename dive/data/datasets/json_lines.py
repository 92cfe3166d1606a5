"""Studies from a JSON lines file.

One study a line, `{"id", "images": [paths], "patient"?, "indication"?, "findings"?,
"impression"?, "split"?}`, with paths relative to the file. Further keys are left alone. A byte
order mark, Windows line ends and blank lines are taken as they come.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from dive.data.absent import counts_text, is_absent, is_placeholder
from dive.data.reading_summary import PLACEHOLDERS
from dive.data.skipping import Skipped, check_on_error
from dive.data.study import Study, check_target
from dive.errors import DiveError, checks
from dive.errors.private import line_location, names_of
from dive.files.input import lines_of

__all__ = ["Skipped", "check_on_error", "read_studies"]

log = logging.getLogger(__name__)

_TEXT_KEYS = ("patient", "indication", "findings", "impression")


def read_studies(
    path: str | os.PathLike[str],
    *,
    target: str | None = None,
    images: str | os.PathLike[str] | None = None,
    on_error: str = "fail",
    skipped: Skipped | None = None,
) -> list[Study]:
    """Read studies from a JSON lines file, in the order of the file.

    Image files must exist; they are decoded later, by `Study.load_images`. A text that is "nan",
    "N/A", "-", "___" or the like is absent (`dive.data.absent`); a warning says how many are.

    Args:
        path: the file; image paths in it are relative to its folder.
        target: "findings", "impression" or "both" if every study must have that text.
        images: the folder that image paths are relative to, where it is not the file's.
        on_error: "fail" raises at the first bad line; "skip" goes on and records it in `skipped`.
        skipped: gets one entry a line that was left out.

    Raises:
        DiveError: names file and line. Also when no study is left at all.
    """
    counts: Counter[str] = Counter()
    studies = studies_of(
        path, target=target, images=images, on_error=on_error, skipped=skipped, placeholders=counts
    )
    if counts:
        name = Path(os.fspath(path)).name
        log.warning("%s: %s taken as absent (%s)", name, counts_text(counts), PLACEHOLDERS)
    return studies


def studies_of(
    path: str | os.PathLike[str],
    *,
    target: str | None,
    images: str | os.PathLike[str] | None,
    on_error: str,
    skipped: Skipped | None,
    placeholders: Counter[str],
) -> list[Study]:
    """`read_studies`, which counts in `placeholders` what it takes as absent."""
    path = checks.path("studies", path)
    skipped = check_on_error(on_error, skipped)
    if target is not None:
        check_target(target)
    folder = path.parent if images is None else checks.path("images", images)
    if not folder.is_dir():
        raise DiveError(f"there is no folder {folder} for the images of {path}")
    studies: list[Study] = []
    first_line: dict[str, int] = {}
    before = len(skipped)
    for number, raw in _lines(path):
        if not raw.strip():
            continue
        source = line_location(path, number)
        name: str | None = None
        try:
            record = _parse(raw, source)
            name = _identifier(record, "id", source)
            if name is None:
                raise DiveError(f'{source}: "id" is missing; the line has {_keys(record)}')
            if name in first_line:
                raise DiveError(
                    f"{source}: id {name!r} was used in line {first_line[name]} already"
                )
            first_line[name] = number
            study = _study(name, record, folder, source)
            placeholders.update(study.placeholders.keys())
            if target is not None:
                study.report(target)
        except DiveError as error:
            if on_error == "fail":
                raise
            skipped.add(name, source, error)
            continue
        studies.append(study)
    if not studies:
        lost = len(skipped) - before
        reason = f"all {lost} lines were skipped" if lost else "it has no lines"
        raise DiveError(f"{path.name}: no study to work with; {reason}")
    return studies


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        yield from lines_of(path)
    except FileNotFoundError:
        raise DiveError(f"there is no file {path}; wants studies, one JSON object a line") from None
    except OSError as error:
        raise DiveError(f"cannot read {path}: {error.strerror}") from error


def _parse(raw: bytes, source: str) -> dict:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DiveError(
            f"{source}: is not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1})"
        ) from None
    try:
        record = json.loads(text, object_pairs_hook=_unique(source))
        # half a surrogate pair is JSON, but no text that can be tokenised or written
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except DiveError:
        raise
    except json.JSONDecodeError as error:
        raise DiveError(
            f"{source}: is not JSON ({error.msg} at column {error.colno}); wants one object a line"
        ) from None
    except UnicodeEncodeError:
        raise DiveError(f"{source}: holds half a surrogate pair, which is no text") from None
    except ValueError:  # what Python says of it is advice to its own users
        raise DiveError(f"{source}: holds a whole number of thousands of digits") from None
    except RecursionError:
        raise DiveError(f"{source}: is nested too deeply to be a study") from None
    if not isinstance(record, dict):
        raise DiveError(f"{source}: is {_kind(record)}; wants one JSON object a line")
    return record


def _unique(source: str) -> Callable[[list[tuple[str, object]]], dict]:
    def build(pairs: list[tuple[str, object]]) -> dict:
        record = dict(pairs)
        if len(record) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DiveError(f"{source}: has the key {names_of([twice])} twice")
        return record

    return build


def _study(name: str, record: dict, folder: Path, source: str) -> Study:
    images = record.get("images")
    if not isinstance(images, list) or not images:
        got = f"it is {_kind(images)}" if "images" in record else f"the line has {_keys(record)}"
        if images == []:
            got = "the list is empty"
        raise DiveError(f'{source}: study {name!r}: "images" wants a list of paths; {got}')
    paths = []
    for number, image in enumerate(images, start=1):
        if not isinstance(image, str) or not image.strip():
            held = "a blank text" if isinstance(image, str) else _kind(image)
            raise DiveError(
                f'{source}: study {name!r}: "images" wants a list of paths; it holds {held}'
            )
        paths.append(folder / os.path.expanduser(image))
        if not os.path.isfile(paths[-1]):
            log.info("%s: study %r: there is no %s", source, name, paths[-1])
            raise DiveError(
                f"{source}: study {name!r}: there is no image file ({number} of {len(images)} of "
                "its paths; -v shows it)"
            )
    fields: dict[str, str | None] = {}
    for key in _TEXT_KEYS:
        value = record.get(key)
        if key == "patient" and not is_placeholder(value):
            value = _identifier(record, key, source)
        elif not isinstance(value, str) and not is_absent(value):
            raise DiveError(f"{source}: study {name!r}: {key!r} wants a text, got {_kind(value)}")
        fields[key] = value
    split, origin = record.get("split"), record.get("origin")
    return Study(
        id=name,
        images=tuple(paths),
        source=source,
        patient=fields["patient"],
        indication=fields["indication"],
        findings=fields["findings"],
        impression=fields["impression"],
        split=split if isinstance(split, str) and not is_absent(split) else None,
        origin=origin if isinstance(origin, str) else None,
    )


def _identifier(record: dict, key: str, source: str) -> str | None:
    """A name; whole numbers are common for it and are taken as their digits."""
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        got = "a blank one" if isinstance(value, str) else _kind(value)
        raise DiveError(f"{source}: {key!r} wants a text that is not blank, got {got}")
    return str(value)


def _keys(record: dict) -> str:
    return f"the keys {names_of(record)}" if record else "no keys"


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    if value is None:
        return "null"
    return kinds.get(type(value), "a number")
