"""Counts with their nouns, for messages."""


def counted(count: int, noun: str) -> str:
    """Returns "1 study", "2 studies", "1,000 steps"."""
    if count == 1:
        return f"1 {noun}"
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {plural}"
