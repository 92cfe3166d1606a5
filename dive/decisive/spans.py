"""Spans of characters, and the tokens that lie on them."""

from collections.abc import Iterable, Sequence

Span = tuple[int, int]


def merged(spans: Iterable[Span]) -> list[Span]:
    """The spans sorted, with those that overlap or touch merged."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def overlapped(offsets: Sequence[Span], spans: Sequence[Span]) -> list[int | None]:
    """The index of the first of the sorted spans, which do not overlap, that each token shares a
    character with; None where it shares none.

    Overlap and not containment: the first piece of a word often carries the space before it.
    Tokens without width (special tokens) share none.
    """
    hits: list[int | None] = []
    k = 0
    for start, end in offsets:
        # offsets of byte pieces may repeat, and never go back far, so step back as needed
        while k > 0 and spans[k - 1][1] > start:
            k -= 1
        while k < len(spans) and spans[k][1] <= start:
            k += 1
        hit = end > start and k < len(spans) and spans[k][0] < end
        hits.append(k if hit else None)
    return hits
