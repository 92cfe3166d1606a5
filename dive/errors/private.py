"""What a message may contain about a study: its id and its location, nothing private.

Reports, indications, patients and the paths of images (which often name the patient) are in no
message at the default level. They are removed here from the messages of libraries; the unchanged
message is logged at INFO, which `dive -v` shows.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dive.errors import DiveError
from dive.errors.counting import counted

log = logging.getLogger(__name__)

SHORTEST = 6  # characters that a message must share with a private text to be removed
LONGEST = 2000  # characters of a library's message that are kept
_GONE = "..."
_NAME = re.compile(r"[A-Za-z_]{1,40}")
# a quoted text or a word that contains a path separator
_PATH = re.compile(r"""(['"])(?:(?!\1)[^\n])*[/\\](?:(?!\1)[^\n])*\1|[^\s'"=<>(]*[/\\][^\s'">)]+""")


def line_location(path: Path | str, number: int | str) -> str:
    """A line of a file as messages name it: "studies.jsonl:12", without the folder."""
    return f"{Path(path).name}:{number}"


def kind_of(text: str) -> str:
    """The kind of a cell's content, without the content."""
    return f"a text of {counted(len(text), 'character')}" if text.strip() else "blank"


def names_of(keys: Iterable[object]) -> str:
    """The names of fields, with dots for those that do not look like a field name.

    A table without a header has the data of a patient in their place.
    """
    given = [str(key) for key in keys]
    return ", ".join(key if _NAME.fullmatch(key) else _GONE for key in given) or "none"


def public_name(name: str, of_hub: bool = False) -> str:
    """A name on the hub unchanged; the last part of a local path."""
    path = Path(name)
    local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    return path.absolute().name if name and (local or (not of_hub and path.exists())) else name


def public_source(decisive: str) -> str:
    """Turns "radgraph:/home/me/annotations.json" into "radgraph:annotations.json"."""
    kind, colon, what = decisive.partition(":")
    return f"{kind}{colon}{Path(what).name}"


def public_reason(error: BaseException, texts: Iterable[str | None] = (), where: str = "") -> str:
    """The message of a library's error without paths and without quotations from `texts`.

    An error of the operating system is reduced to its reason.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    whole = str(error).strip()
    text = without_texts(without_paths(whole[:LONGEST]), texts)
    if text != whole:
        log.info("%s%s: %s", f"{where}: " if where else "", type(error).__name__, whole)
    return text if text.strip(f" {_GONE}") else type(error).__name__


def refused(what: str, error: BaseException, studies: Iterable[Any]) -> DiveError:
    """The error "what: why", without the texts of these studies."""
    return DiveError(
        f"{what}: {public_reason(error, [text for one in studies for text in one.texts])}"
    )


def without_paths(text: str) -> str:
    """Replaces the paths in a text by dots."""
    return _PATH.sub(_GONE, text)


def without_texts(text: str, private: Iterable[str | None]) -> str:
    """Replaces by dots every passage that a text shares with one of the private texts.

    A passage is `SHORTEST` characters or more, in upper or lower case, as in the private text, in
    its `repr`, or with single spaces between its words; a private text that is shorter is replaced
    where it occurs as a whole.
    """
    said, hidden = _lowered(text), [False] * len(text)
    for one in filter(None, private):
        for form in {_lowered(form) for form in (one, repr(one)[1:-1], " ".join(one.split()))}:
            size = min(SHORTEST, len(form))
            if size < 3:
                continue
            parts = {form[at : at + size] for at in range(len(form) - size + 1)}
            for at in range(len(said) - size + 1):
                if said[at : at + size] in parts:
                    hidden[at : at + size] = [True] * size
    return "".join(
        _GONE if gone and (not at or not hidden[at - 1]) else "" if gone else text[at]
        for at, gone in enumerate(hidden)
    )


def _lowered(text: str) -> str:
    """The text in lower case, as long as it was: a few letters would become two."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)
