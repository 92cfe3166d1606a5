"""What is printed for people, through one kind of console: users' text is text, and no more.

Brackets are brackets and no markup, `:smile:` is no picture, and what a terminal would obey is
shown (`dive.errors.visible`). Colours are asked for with `style=` or `rich.text.Text`.
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Task, TextColumn
from rich.segment import Segment
from rich.text import Text

from dive.errors.visible import visible


class PlainConsole(Console):
    """A `rich.console.Console` that takes every text as it is."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False} | settings)

    def render_str(self, text: str, **settings: Any) -> Text:  # type: ignore[override]
        # before rich drops some of it in silence (bells, backspaces, returns)
        return super().render_str(visible(text), **settings)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for one in super().render(renderable, options):
            yield one if one.control else Segment(visible(one.text), one.style)


def to_stderr(**settings: Any) -> PlainConsole:
    """Messages for people; a line is as long as it is."""
    return PlainConsole(stderr=True, **{"soft_wrap": True} | settings)


def styled(text: object, style: str = "") -> Text:
    """A text with a style, without markup, as a cell or a line."""
    return Text(visible(text), style)


class _Words(TextColumn):
    def render(self, task: Task) -> Text:
        return styled(self.text_format.format(task=task))


def column(text: str) -> TextColumn:
    """Words beside a progress bar; `text` is a format of its `task`."""
    return _Words(text, markup=False)
