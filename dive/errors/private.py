"""What a message may say of a study: its id and its place, and nothing that is the hospital's.

Reports, indications, patients and the paths of images (in which the patient often stands) are in no
message at the default level. Where a library's words may hold them, these are taken out here; the
words as they came are logged at INFO, which `dive -v` shows.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dive.errors import DiveError
from dive.errors.counting import counted

log = logging.getLogger(__name__)

SHORTEST = 6  # characters that a message must share with a private text, for them to be taken out
LONGEST = 2000  # characters of a library's words that are told
_GONE = "..."
_NAME = re.compile(r"[A-Za-z_]{1,40}")
# in quotes, with a separator in it; or a word with one
_PATH = re.compile(r"""(['"])(?:(?!\1)[^\n])*[/\\](?:(?!\1)[^\n])*\1|[^\s'"=<>(]*[/\\][^\s'">)]+""")


def line_location(path: Path | str, number: int | str) -> str:
    """A line of a file, as messages name it: by the file's last name."""
    return f"{Path(path).name}:{number}"


def kind_of(text: str) -> str:
    """What a cell holds, without what it says."""
    return f"a text of {counted(len(text), 'character')}" if text.strip() else "blank"


def names_of(keys: Iterable[object]) -> str:
    """The names of fields that something has; dots for what does not look like one, as where a
    file is a table of patients."""
    given = [str(key) for key in keys]
    return ", ".join(key if _NAME.fullmatch(key) else _GONE for key in given) or "none"


def public_name(name: str, of_hub: bool = False) -> str:
    """A name on the hub as it is; of a path on somebody's disk the last part."""
    path = Path(name)
    local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    return path.absolute().name if name and (local or (not of_hub and path.exists())) else name


def public_source(decisive: str) -> str:
    """ "radgraph:/somebody/annotations.json" without whose it is."""
    kind, colon, what = decisive.partition(":")
    return f"{kind}{colon}{Path(what).name}"


def public_reason(error: BaseException, texts: Iterable[str | None] = (), where: str = "") -> str:
    """What a library's error says, without paths, and without what it quotes of `texts`; of an
    error of the operating system its reason alone."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    whole = str(error).strip()
    text = without_texts(without_paths(whole[:LONGEST]), texts)
    if text != whole:
        log.info("%s%s: %s", f"{where}: " if where else "", type(error).__name__, whole)
    return text if text.strip(f" {_GONE}") else type(error).__name__


def refused(what: str, error: BaseException, studies: Iterable[Any]) -> DiveError:
    """An error "what: why", without the texts of these studies."""
    return DiveError(
        f"{what}: {public_reason(error, [text for one in studies for text in one.texts])}"
    )


def without_paths(text: str) -> str:
    """The text with dots in the place of paths."""
    return _PATH.sub(_GONE, text)


def without_texts(text: str, private: Iterable[str | None]) -> str:
    """The text with dots in the place of everything of `SHORTEST` characters that it shares with
    one of the private texts, as it is there or as `repr` writes it; of a shorter one the whole."""
    for one in private:
        for form in {one or "", repr(one or "")[1:-1]}:
            size = min(SHORTEST, len(form))
            if size < 3:
                continue
            parts = {form[at : at + size] for at in range(len(form) - size + 1)}
            hidden = [False] * len(text)
            for at in range(len(text) - size + 1):
                if text[at : at + size] in parts:
                    hidden[at : at + size] = [True] * size
            text = "".join(
                _GONE if gone and (not at or not hidden[at - 1]) else "" if gone else text[at]
                for at, gone in enumerate(hidden)
            )
    return text
