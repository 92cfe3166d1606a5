"""Tables and texts on stdout without loss: in a narrow terminal, in a pipe, in ASCII."""

import codecs
import sys

from rich.table import Table
from rich.text import Text

from dive.errors.console import PlainConsole, styled

# columns in a file or a pipe: text that may be searched for is not folded
_NO_END = 10_000
_ESCAPES = "dive.escapes"


def stdout() -> PlainConsole:
    """Returns a console: a terminal with its own width, a file or a pipe without line breaks."""
    console = PlainConsole()
    return console if console.is_terminal else PlainConsole(width=_NO_END)


def table(*names: str) -> Table:
    """Returns a table whose cells are folded where they are too long, and never cut."""
    made = Table(box=None, pad_edge=False)
    for name in names:
        add_column(made, name)
    return made


def add_column(made: Table, name: str, style: str = "") -> None:
    """Adds a column of the same kind."""
    made.add_column(styled(name), overflow="fold", style=style)


def add_row(made: Table, *cells: str | Text) -> None:
    """Adds a row; brackets in a cell are text, not markup."""
    made.add_row(*(styled(cell) if isinstance(cell, str) else cell for cell in cells))


def escape_on_stdout() -> None:
    r"""Writes characters outside stdout's encoding as \u00e9: no error, and valid JSON."""
    codecs.register_error(_ESCAPES, _escaped)
    given = sys.stdout
    # an error handler that was set (PYTHONIOENCODING=ascii:replace) is kept
    if hasattr(given, "reconfigure") and given.errors in ("strict", "surrogateescape"):
        given.reconfigure(errors=_ESCAPES)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wide = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    pairs = (wide[at : at + 2].hex() for at in range(0, len(wide), 2))
    return "".join(f"\\u{pair}" for pair in pairs), error.end
