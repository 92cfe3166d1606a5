"""Generators whose every step runs inside a context that the caller's code between does not see."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

T = TypeVar("T")


def iterate_within(
    context: Callable[[], AbstractContextManager[Any]], results: Iterator[T]
) -> Iterator[T]:
    """The same results, each made inside a new `context()`; closing it closes `results`."""
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
