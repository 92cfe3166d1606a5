"""The page as one HTML file: its template, style and scripts, and the data that they show.

Nothing that a user wrote is ever HTML. The data is JSON inside a block that no browser runs, with
every character escaped that could end it; the scripts put texts into text nodes; and a content
security policy lets no other script or style run than those written here, and nothing be fetched.
"""

import base64
import hashlib
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dive.errors import DiveError
from dive.errors.visible import visible
from dive.files.atomic import write_text
from dive.page.schema import PageData

ASSETS = Path(__file__).parent / "assets"
# In this order they are one script: each uses what the ones before it define.
SCRIPTS = (
    "pieces.js",
    "data.js",
    "state.js",
    "reports.js",
    "study_list.js",
    "study_view.js",
    "charts.js",
    "lines.js",
    "overview.js",
    "finding_tables.js",
    "training.js",
    "grids.js",
    "explained.js",
    "keys.js",
    "start.js",
)
# inside a script element these begin something else than JSON does (HTML, "Script data state")
_IN_HTML = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def render(data: PageData) -> str:
    """The whole page as HTML, which needs no other file but images that lie beside it.

    Args:
        data: as dive/page/schema.py describes it; texts may hold any character.

    Raises:
        DiveError: a number is NaN or infinite, for which JSON has no word.
    """
    import jinja2
    from markupsafe import Markup

    style, script = _read("page.css"), _script()
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        _read("page.html.j2")
    )
    return template.render(
        policy=policy(style, script, beside=_has_images_beside(data)),
        title=visible(data["title"]),
        version=visible(data["version"]),
        style=Markup(style),
        script=Markup(script),
        data=Markup(embedded(data)),
    )


def write_page(path: Path, data: PageData) -> None:
    """Write `render(data)` to `path`, which has the old page or the new one, never a part.

    Raises:
        DiveError: as `render`; or the file cannot be written.
    """
    write_text(path, render(data))


def embedded(data: PageData) -> str:
    """`data` as strict JSON in ASCII, without any character that HTML gives a meaning to.

    Raises:
        DiveError: a number is NaN or infinite; it is named by its keys, as scores.0.bleu4.value.
    """
    try:
        text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        where = next(_not_finite(data), None)
        if where is None:
            raise
        problem = f"{where} of the page's data is not finite, want a finite number"
        raise DiveError(problem) from error
    return text.translate(_IN_HTML)


def policy(style: str, script: str, *, beside: bool) -> str:
    """The content security policy of a page with this style and script, and nothing else.

    beside: some images are files beside the page. A page that is opened from a disk has no origin
        of its own, so that its images need `file:`; one that a server sends needs 'self'.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash_of(script)}'",
            f"style-src '{_hash_of(style)}'",
            "img-src data: 'self' file:" if beside else "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            # no text can become HTML or a script, whatever a function of the page does with it
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _hash_of(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _has_images_beside(data: PageData) -> bool:
    sources = (image["src"] for study in data["studies"] for image in study["images"])
    return any(source is not None and not source.startswith("data:") for source in sources)


@cache
def _read(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    """All scripts as one, whose names nothing outside sees."""
    parts = "\n".join(_read(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();\n'


def _not_finite(value: Any, where: str = "") -> Iterator[str]:
    """The keys that lead to each number that is NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, f"{where}.{index}" if where else str(index))
