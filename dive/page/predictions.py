"""The reports of one method, and the numbers that come with them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dive.data.absent import is_absent, is_placeholder
from dive.errors import DiveError


@dataclass(frozen=True)
class Predictions:
    """The reports of one method.

    Attributes:
        name: of the method, on the page.
        records: study id -> record of `dive generate`: "report", and where known "finish_reason",
            "prompt_tokens" and "seconds".
        file: last name of the file that they come from.

    Raises:
        DiveError: a blank name, or a record without a report.
    """

    name: str
    records: Mapping[str, Mapping[str, Any]]
    file: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise DiveError(f"the name of a method is {self.name!r}, want a text")
        if not isinstance(self.records, Mapping):
            kind = type(self.records).__name__
            raise DiveError(f"{self.name}: records is a {kind}, want a mapping of id to record")
        for id, record in self.records.items():
            if not isinstance(record, Mapping) or "report" not in record:
                raise DiveError(
                    f'{self.name}: the record of study {id!r} has no "report", want a mapping with '
                    "one"
                )
            if not isinstance(record["report"], str) and not is_absent(record["report"]):
                kind = type(record["report"]).__name__
                raise DiveError(f"{self.name}: the report of study {id!r} is a {kind}, want a text")


def text_of(record: Mapping[str, Any]) -> str:
    """The report of a record, "" where a missing value stands for it."""
    return "" if is_placeholder(record["report"]) else str(record["report"] or "")


def number_of(value: Any) -> float | None:
    """A count or a time of a record as a number; None for what is none, or is below 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return found if math.isfinite(found) and found >= 0 else None


def mean(values: Iterable[Any]) -> float | None:
    """The mean; None where a value is no number, or there is none."""
    given = [number_of(value) for value in values]
    known = [value for value in given if value is not None]
    if not known or len(known) < len(given):
        return None
    return sum(value / len(known) for value in known)
