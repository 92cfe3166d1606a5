"""The console that everything for people is printed through, without markup in users' text.

Brackets and `:smile:` are printed as they are, and control characters are escaped
(`dive.errors.visible`). Colours come from `style=` or `rich.text.Text`.
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Task, TextColumn
from rich.segment import Segment
from rich.text import Text

from dive.errors.visible import visible


class PlainConsole(Console):
    """A `rich.console.Console` that interprets no text."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False} | settings)

    def render_str(self, text: str, **settings: Any) -> Text:  # type: ignore[override]
        # before rich drops bells, backspaces and returns
        return super().render_str(visible(text), **settings)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for one in super().render(renderable, options):
            yield one if one.control else Segment(visible(one.text), one.style)


def to_stderr(**settings: Any) -> PlainConsole:
    """The console for messages, which does not wrap lines."""
    return PlainConsole(stderr=True, **{"soft_wrap": True} | settings)


def styled(text: object, style: str = "") -> Text:
    """A text with a style and without markup, for a cell or a line."""
    return Text(visible(text), style)


class _Words(TextColumn):
    def render(self, task: Task) -> Text:
        return styled(self.text_format.format(task=task))


def column(text: str) -> TextColumn:
    """A text column of a progress bar; `text` is a format string of its `task`."""
    return _Words(text, markup=False)
