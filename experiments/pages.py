"""Pages that show records: what stands between two markers is written by code.

<!-- experiment: NAME -->   the text of that name, up to
<!-- end -->
"""

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence

from dive.errors import DiveError

_MARKED = re.compile(r"(<!-- experiment: ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, made: Mapping[str, Callable[[], str]]) -> str:
    """Returns the page with the text of each name between its markers.

    Raises DiveError for a page without markers, and for a name that is not in `made`.
    """
    if not _MARKED.search(page):
        raise DiveError("the page has no <!-- experiment: NAME --> ... <!-- end -->")

    def written(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in made:
            raise DiveError(f"the page asks for {name!r}, want one of {', '.join(made)}")
        return f"{begin}{made[name]()}\n{end}"

    return _MARKED.sub(written, page)


def marked(page: str) -> list[str]:
    """Returns the texts between markers, with them."""
    return [match.group() for match in _MARKED.finditer(page)]


def unmarked(page: str) -> str:
    """Returns what people wrote of the page."""
    return _MARKED.sub("", page)


def items(lines: Sequence[str]) -> str:
    """Returns a Markdown list, wrapped as the pages are."""
    return "\n".join(
        textwrap.fill(
            f"- {line}",
            104,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines
    )
