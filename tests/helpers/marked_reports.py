"""Reports with their mentions marked, in decisive/reports.txt."""

import re
from pathlib import Path

SIGNS = {"+": "positive", "-": "negative", "?": "uncertain"}
_MARK = re.compile(r"\[([^\[\]|]*)\|(~|[-+?][^\]]*)\]")


def read_marked(marked: str) -> tuple[str, list[tuple[tuple[tuple[int, int], ...], str, str]]]:
    """The report without its marks, and (spans, polarity, name) of each mention."""
    text, done, open_spans, mentions = "", 0, [], []
    for match in _MARK.finditer(marked):
        text += marked[done : match.start()]
        open_spans.append((len(text), len(text) + len(match.group(1))))
        text += match.group(1)
        done = match.end()
        if match.group(2) != "~":
            tag = match.group(2)
            mentions.append((tuple(open_spans), SIGNS[tag[0]], tag[1:]))
            open_spans = []
    assert not open_spans, f"a mention without its last piece: {marked!r}"
    return text + marked[done:], mentions


def marked_reports() -> list[str]:
    path = Path(__file__).parents[1] / "decisive" / "reports.txt"
    return path.read_text(encoding="utf-8").split("\n---\n")[1:]
