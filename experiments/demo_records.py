"""The records of the experiment on the built-in world (compare_methods.py), read without torch."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.record_files import Record, check_unique, read

FILE = Path(__file__).parents[1] / "benchmarks" / "results" / "demo-study.jsonl"


def load(path: Path = FILE) -> list[Record]:
    """Reads a file of records; raises DiveError for a torn line, and for two records of one run."""
    found = read(path)
    check_unique(found, ("part", "hospital", "seed", "method"))
    return [record for _, record in found]


def lines(records: Sequence[Record]) -> str:
    """Returns how many records there are of each part, and of which commits and machines."""
    if not records:
        return "There is no record."
    made = []
    for part in dict.fromkeys(record["part"] for record in records):
        own = [record for record in records if record["part"] == part]
        hospitals = sorted({record["hospital"] for record in own})
        commits = ", ".join(sorted({record["commit"] for record in own}))
        shown = ", ".join(map(str, hospitals))
        made.append(f"- {part}: {len(own)} records, hospitals {shown}, commit {commits}.")
    machines = Counter(record["machine"] for record in records)
    made += [f"- Machine: {name} ({count})." for name, count in machines.items()]
    return "\n".join(made)
