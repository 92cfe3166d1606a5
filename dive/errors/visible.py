r"""Text for a terminal, with control characters escaped.

A path, an id, a report or a library's message may contain an escape sequence that clears the
screen, renames the window, fills the clipboard (OSC 52), gives a link another target than it shows
(OSC 8), or reverses the direction of the text behind it. ESC is written as the four characters
\x1b, and so on.
"""

import json
import re
from typing import Any

# C0 except the tab and the line feed, DEL, C1 (0x9b opens a sequence as ESC [ does), direction
# marks, other line ends, and lone surrogates, which no encoding has.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: object) -> str:
    r"""Escapes every control character of a text as \x1b or \u202e.

    Tabs and line feeds stay. A second call changes nothing.
    """
    return _OBEYED.sub(_written, str(text))


def visible_json(value: Any) -> str:
    """JSON on one line, not limited to ASCII; control characters are escaped as \\u001b."""
    text = json.dumps(value, ensure_ascii=False)
    return _OBEYED.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def visible_offsets(text: str) -> list[int]:
    """The offset of each character of `text` in `visible(text)`, and the length of the latter."""
    offsets = [0]
    for letter in text:
        offsets.append(offsets[-1] + len(visible(letter)))
    return offsets


def _written(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
