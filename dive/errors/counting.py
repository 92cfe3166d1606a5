"""Counts with their nouns, and lists that may be long, for messages."""

from collections.abc import Sequence


def counted(count: int, noun: str) -> str:
    """Returns "1 study", "2 studies", "1,000 steps"."""
    if count == 1:
        return f"1 {noun}"
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {plural}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Returns the first `most` names, and " ..." where there are more."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
