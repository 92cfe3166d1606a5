"""The records of the study of decisive weights, and the measures that they contain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from dive.errors import DiveError
from experiments.decisive_weights import protocol
from experiments.record_files import Record, check_names, check_unique, read

FILE = Path(__file__).parents[2] / "benchmarks" / "results" / "decisive-weights.jsonl"
STATUSES = ("ok", "diverged", "failed")
_KEY = ("part", "world", "hospital", "arm", "steps", "seed")
# Controls by a threshold: U, stating as many rare slots as the arm in whose records they are.
CONTROLS = {"T": "P", "TC": "C"}


@dataclass(frozen=True)
class Study:
    """The records of one file: the last of each run, and how often a run failed before it."""

    records: list[Record]
    repeated: int = 0

    def part(self, name: str = "confirmatory") -> list[Record]:
        return [record for record in self.records if record["part"] == name]

    def of_runs(self, runs: Sequence[tuple[str, str, int]]) -> list[Record]:
        """Returns the confirmatory records of these runs."""
        return [one for one in self.part() if (one["world"], one["arm"], one["steps"]) in runs]

    def find(self, world: str, arm: str, steps: int) -> dict[int, Record]:
        """Returns the confirmatory records of one arm, by hospital."""
        wanted = (world, arm, steps)
        return {
            record["hospital"]: record
            for record in self.part()
            if (record["world"], record["arm"], record["steps"]) == wanted
        }

    def missing(self) -> list[tuple[int, str, str, int, str]]:
        """Returns hospital, world, arm and steps of every run without measures, and why."""
        found = []
        for world, arm, steps in protocol.ALL_RUNS:
            known = self.find(world, arm, steps)
            for hospital in protocol.CONFIRMATORY:
                status = known[hospital]["status"] if hospital in known else "not run"
                if status != "ok":
                    found.append((hospital, world, arm, steps, status))
        return found


def load(path: Path = FILE) -> Study:
    """Reads and checks a file of records.

    A failed run may be repeated: its later record replaces it. Raises DiveError, with the line, for
    a torn line, an unknown name or hospital, and two records of one run.
    """
    found = read(path)
    for location, record in found:
        known = {
            "part": tuple(protocol.PARTS), "world": protocol.WORLDS, "arm": tuple(protocol.ARMS),
            "status": STATUSES, "seed": (0,),
        }  # fmt: skip
        check_names(location, record, known)
        check_names(location, record, {"hospital": protocol.PARTS[record["part"]]})
        if record["part"] == "confirmatory":
            run = (record["world"], record["arm"], record.get("steps"))
            if run not in protocol.ALL_RUNS:
                raise DiveError(
                    f"{location}: world {run[0]}, arm {run[1]}, steps {run[2]!r} is no run of the "
                    "protocol, want one of protocol.ALL_RUNS"
                )
    done = [one for one in found if one[1]["status"] != "failed"]
    # only the rates were tried one against another
    check_unique([one for one in done if one[1]["part"] != "rates"], _KEY)
    check_unique([one for one in done if one[1]["part"] == "rates"], (*_KEY, "learning_rate"))

    def key(record: Record) -> tuple[object, ...]:
        return tuple(record[name] for name in _KEY) + (
            (record.get("learning_rate"),) if record["part"] == "rates" else ()
        )

    last = {key(record): record for _, record in found}
    last |= {key(record): record for _, record in done}
    return Study(list(last.values()), len(found) - len(last))


class NoValueError(Exception):
    """A record does not have a measure; the message says why."""


def number(record: Record, name: str) -> Fraction:
    """Returns a field, exact in its decimal digits; raises NoValueError where it is no number."""
    value = record.get(name)
    if value is None:
        raise NoValueError(f"no {name}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise NoValueError(f"{name} is {value}")
    return Fraction(str(value))


def rare_auroc(record: Record) -> Fraction:
    """Returns the mean AUROC of the four rare slots."""
    found = record.get("rare_auroc")
    if not isinstance(found, dict) or set(found) != set(protocol.RARE):
        raise NoValueError("rare_auroc does not have the four rare findings")
    return sum((number(found, name) for name in protocol.RARE), Fraction(0)) / len(found)


def share(record: Record, hits: str, of: str) -> Fraction:
    whole = number(record, of)
    if not whole:
        raise NoValueError(f"{of} is 0")
    return number(record, hits) / whole


def value(record: Record, measure: str) -> Fraction:
    """Returns a measure of a record; raises NoValueError where there is none.

    "slot_recall" and "slot_precision" are of the stated slots; with "_T", of the control by a
    threshold, whose counts are in the records of the arm (`CONTROLS`).
    """
    control = "_T" if measure.endswith("_T") else ""
    if measure == "rare_auroc":
        return rare_auroc(record)
    if measure.startswith("slot_recall"):
        return share(record, f"slot_hits{control}", "slot_true")
    if measure.startswith("slot_precision"):
        return share(record, f"slot_hits{control}", f"slot_positives{control}")
    return number(record, measure)


def values(records: Sequence[Record], measure: str) -> list[float]:
    """Returns a measure of those records that have it."""
    found = []
    for record in records:
        try:
            found.append(float(value(record, measure)))
        except NoValueError:
            continue
    return found
