"""Figures that sentences of a page repeat: each must be one of the tables' figures."""

import re

from experiments.pages import unmarked


def said(page: str) -> str:
    """Returns what people wrote of a page about the built-in world."""
    text = unmarked(page)
    if "## What the built-in world" in text:  # README has figures of other things, too
        text = text[text.index("## What the built-in world") : text.index("## Speed")]
    return text


def unfounded(text: str, shown: str) -> list[str]:
    """Returns the figures of a text that no table shows.

    Sizes with an interval, p values, and scores that are followed by the name of their measure.
    """
    missing = [size for size in re.findall(r"\d+\.\d ± \d+\.\d", text) if size not in shown]
    tested = re.findall(r"(?:p|corrected) (\.\d{3})", text)
    missing += [p for p in tested if f"p {p}" not in shown and f", {p}" not in shown]
    plain = re.findall(r"(?<![\d.±] )\b(\d+\.\d) (?:BLEU-4|style F1|concept F1)", text)
    missing += [score for score in plain if not re.search(rf"[| +-]{score} ±", shown)]
    return missing
