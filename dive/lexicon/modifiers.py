"""Severity, side and location next to a finding, as part of its span."""

import re
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

_WORD = re.compile(r"[^\W_]+(?:\.\d+)?")
# text that may stand between a finding and its modifier
_JOIN = re.compile(r"[\s\-/]*")
_REACH = 8  # words on each side


@lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """The words of modifiers.yaml."""
    source = resources.files("dive.lexicon") / "modifiers.yaml"
    return yaml.safe_load(source.read_text(encoding="utf-8"))


def plain_words(group: Any) -> list[str]:
    """All words of a group of modifiers.yaml: a list, or groups by name."""
    if isinstance(group, dict):
        return [word for part in group.values() for word in plain_words(part)]
    return list(map(str, group))


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[frozenset[str], frozenset[str]]:
    return frozenset(plain_words(table()["words"])), frozenset(plain_words(table()["links"]))


def widen(text: str, start: int, end: int) -> tuple[int, int]:
    """The span of `text[start:end]` with the modifiers right before and right after it.

    "no more than a [small left pleural effusion at the base]. Heart ..." : punctuation, and any
    word that is neither a modifier nor a link to one, ends the span.
    """
    words, links = _vocabulary()

    def walk(found: list[re.Match[str]], forward: bool) -> int:
        edge = reached = end if forward else start
        for match in found[:_REACH]:
            gap = text[edge : match.start()] if forward else text[match.end() : edge]
            word = match.group().lower()
            size = word[0].isdigit() and not forward  # "4 mm nodule"
            known = word in words or size
            if not _JOIN.fullmatch(gap) or not (known or word in links):
                break
            edge = match.end() if forward else match.start()
            if known:
                reached = edge
        return reached

    # a window keeps this linear for a text of any length
    before = list(_WORD.finditer(text, max(0, start - 160), start))[::-1]
    after = list(_WORD.finditer(text, end, min(len(text), end + 160)))
    return walk(before, forward=False), walk(after, forward=True)
