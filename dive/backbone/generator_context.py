"""Generators each step of which runs inside a context that is left while the caller's code runs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

T = TypeVar("T")


def iterate_within(
    context: Callable[[], AbstractContextManager[Any]], results: Iterator[T]
) -> Iterator[T]:
    """Yield the same results, each made inside a new `context()`; closing it closes `results`."""
    try:
        while True:
            with context():
                try:
                    one = next(results)
                except StopIteration:
                    return
            yield one
    finally:
        close = getattr(results, "close", None)
        if close is not None:
            close()
