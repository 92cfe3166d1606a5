"""Studies from a JSON lines file.

One study per line, `{"id", "images": [paths], "patient"?, "indication"?, "findings"?,
"impression"?, "split"?}`, with paths relative to the file. Further keys are ignored. A byte order
mark, Windows line ends and blank lines are accepted.
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

    Image files must exist; they are decoded later, by `Study.load_images`. A text such as "nan",
    "N/A", "-" or "___" is absent (`dive.data.absent`); a warning has the count of these.

    Args:
        path: the file; image paths in it are relative to its folder.
        target: "findings", "impression" or "both" if every study must have that text.
        images: the folder that image paths are relative to, if it is not that of the file.
        on_error: "fail" raises at the first bad line; "skip" continues and adds it to `skipped`.
        skipped: receives one entry per line that was left out.

    Raises:
        DiveError: a line is bad (names file and line), or no study is left.
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
    """`read_studies` that adds absent values to `placeholders` instead of a warning."""
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
        raise DiveError(
            f"there is no file {path}, want studies, one JSON object per line"
        ) from None
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
        # a lone surrogate is JSON, but cannot be tokenised or written
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except DiveError:
        raise
    except json.JSONDecodeError as error:
        raise DiveError(
            f"{source}: is not JSON ({error.msg} at column {error.colno}), want one object per line"
        ) from None
    except UnicodeEncodeError:
        raise DiveError(f"{source}: has a lone surrogate, which cannot be written") from None
    except ValueError:  # the message of Python is advice to programmers
        raise DiveError(f"{source}: has a whole number of thousands of digits") from None
    except RecursionError:
        raise DiveError(f"{source}: is nested too deeply to be a study") from None
    if not isinstance(record, dict):
        raise DiveError(f"{source}: is {_kind(record)}, want one JSON object per line")
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
        got = _kind(images) if "images" in record else f"missing (the line has {_keys(record)})"
        if images == []:
            got = "an empty list"
        raise DiveError(f'{source}: study {name!r}: "images" is {got}, want a list of paths')
    paths = []
    for number, image in enumerate(images, start=1):
        if not isinstance(image, str) or not image.strip():
            held = "a blank string" if isinstance(image, str) else _kind(image)
            raise DiveError(
                f'{source}: study {name!r}: "images" has {held} in it, want a list of paths'
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
            raise DiveError(f"{source}: study {name!r}: {key!r} is {_kind(value)}, want a string")
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
    """An id or a patient; whole numbers are common and become their digits."""
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        got = "blank" if isinstance(value, str) else _kind(value)
        raise DiveError(f"{source}: {key!r} is {got}, want a string that is not blank")
    return str(value)


def _keys(record: dict) -> str:
    return f"the keys {names_of(record)}" if record else "no keys"


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    return kinds.get(type(value), "a number")
