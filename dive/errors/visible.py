r"""Text for a person's terminal: what a terminal would obey is shown, and not sent.

A path, an id, a report or a library's message may hold an escape sequence that clears the screen,
retitles the window, fills the clipboard (OSC 52), names another address than a link shows (OSC 8),
or turns the direction of what follows. Here ESC is the four letters \x1b, and so on.
"""

import json
import re
from typing import Any

# C0 but for the tab and the line feed, DEL, C1 (0x9b opens a sequence as ESC [ does), what turns
# the direction of text, other ends of lines, and halves of pairs, which no encoding has.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: object) -> str:
    r"""The text with every character that a terminal obeys written as \x1b or \u202e.

    Tabs and line feeds stay. Of a text that went through it before nothing changes.
    """
    return _OBEYED.sub(_written, str(text))


def visible_json(value: Any) -> str:
    """JSON on one line, letters as they are; what a terminal obeys is escaped as JSON has it."""
    text = json.dumps(value, ensure_ascii=False)
    return _OBEYED.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def visible_offsets(text: str) -> list[int]:
    """Where each character of `text` begins in `visible(text)`, and where that ends."""
    offsets = [0]
    for letter in text:
        offsets.append(offsets[-1] + len(visible(letter)))
    return offsets


def _written(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
