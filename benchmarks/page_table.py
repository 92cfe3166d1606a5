"""Figures and tables of the rendered pages."""

from collections.abc import Iterable


def number(value: float | None) -> str:
    """Returns three significant digits."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Returns a table with its first column aligned left and the others right."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return [*lines, ""]
