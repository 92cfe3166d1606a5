"""The results of a run as records with units, and as JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from dive.bench.timing import Interval, interval
from dive.errors.renamed import renamed_attribute

SCHEMA = 1  # of the JSON; a change of meaning increments it


class Setting(NamedTuple):
    """The operator, case and mode of the records of one table."""

    operator: str
    case: str
    mode: str


@dataclass(frozen=True)
class Record:
    """One way to compute one case, timed."""

    operator: str  # cross-entropy, steer or decode
    case: str
    mode: str  # forward, forward+backward, or per token of an answer
    way: str
    ran: str  # the code that was observed to run
    milliseconds: Interval
    samples: int
    beside: str | None  # the way that `times` compares with
    times: Interval | None  # this one's time over that one's, of the same rounds
    rate: float  # of the work that the case is defined by
    rate_unit: str
    floor_share: float | None  # the floor's time over this one's; 1 reaches the floor


@dataclass(frozen=True)
class Unmeasured:
    """A way that has no record, and why."""

    operator: str
    case: str
    way: str
    reason: str


@dataclass(frozen=True)
class Wrong:
    """An operator that does not compute what it should; it was not timed."""

    operator: str
    case: str
    reason: str


Found = Record | Unmeasured | Wrong


@dataclass
class Results:
    """The results of a run."""

    head: dict[str, Any]
    rates: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    unmeasured: list[Unmeasured] = field(default_factory=list)
    wrong: list[Wrong] = field(default_factory=list)

    rows = renamed_attribute("rows", "records")
    not_run = renamed_attribute("not_run", "unmeasured")

    def add(self, found: Found) -> None:
        """Appends a result to the list of its kind."""
        if isinstance(found, Record):
            self.records.append(found)
        elif isinstance(found, Unmeasured):
            self.unmeasured.append(found)
        else:
            self.wrong.append(found)

    def as_json(self) -> dict[str, Any]:
        """Returns plain numbers, strings, lists and dictionaries; times in milliseconds."""
        return {
            "schema": SCHEMA,
            **self.head,
            "rates": self.rates,
            "rows": [_record_json(record) for record in self.records],
            "not_run": [asdict(one) for one in self.unmeasured],
            "wrong": [asdict(one) for one in self.wrong],
        }


def _record_json(record: Record) -> dict[str, Any]:
    plain = asdict(record) | {
        "milliseconds": _interval(record.milliseconds),
        "times": None if record.times is None else _interval(record.times),
        "rate": significant(record.rate),
    }
    if record.floor_share is not None:
        plain["floor_share"] = significant(record.floor_share)
    return plain


def _interval(values: Interval) -> dict[str, float]:
    return {name: significant(value) for name, value in values._asdict().items()}


def significant(value: float) -> float:
    """Rounds to five digits, more than any of these is accurate to."""
    return float(f"{value:.5g}")


def records_of(
    setting: Setting,
    seconds: Mapping[str, list[float]],
    ran: Mapping[str, str],
    beside: Mapping[str, str],
    work: float,
    unit: str,
) -> Iterator[Record]:
    """Yields one record per way from the seconds of its rounds; shares are relative to "floor".

    work: of one call, in `unit` times seconds. beside: way -> the way to compare it with.
    """
    floor = seconds.get("floor")
    for way, values in seconds.items():
        other = beside.get(way)
        times = share = None
        if other is not None and other in seconds:
            times = interval([a / b for a, b in zip(values, seconds[other], strict=True)])
        if floor is not None:
            share = interval([a / b for a, b in zip(floor, values, strict=True)]).median
        taken = interval(values)
        yield Record(
            *setting,
            way,
            ran[way],
            Interval(*(1e3 * one for one in taken)),
            len(values),
            other if times is not None else None,
            times,
            work / taken.median,
            unit,
            share,
        )


def reason_of(error: BaseException) -> str:
    """Returns an exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
