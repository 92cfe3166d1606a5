"""What was measured on the development hospitals before anything was fixed.

<!-- experiment: decisive pilot -->   learning rates by arm, and the spread of P8 - U
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from statistics import mean, stdev

from experiments.decisive_weights import protocol
from experiments.decisive_weights.records import FILE, NoValueError, Study, value, values
from experiments.decisive_weights.tables import spread, table
from experiments.record_files import Record

PILOT = FILE.with_name("decisive-weights-pilot.jsonl")


def pilot(study: Study) -> str:
    """Returns the table of learning rates, and under it the difference P8 - U by hospital."""
    rates = study.part("rates")
    parts = [rate_table(rates)] if rates else []
    found = differences(study.part("pilot"))
    if found:
        shown = ", ".join(f"{hospital} {float(one):+.3f}" for hospital, one in found.items())
        size = f"{float(mean(found.values())):+.3f}"
        if len(found) > 1:
            size += f", standard deviation {stdev(map(float, found.values())):.3f}"
        parts.append(f"P8 - U in rare AUROC: {shown}; mean {size}.")
    return "\n\n".join(parts) if parts else "There is no run on the development hospitals yet."


def rate_table(rates: Sequence[Record]) -> str:
    rows = []
    for arm in protocol.ARMS:
        own = [record for record in rates if record["arm"] == arm]
        for rate in sorted({record["learning_rate"] for record in own}):
            known = [record for record in own if record["learning_rate"] == rate]
            done = [record for record in known if record["status"] == "ok"]
            cells = [
                spread(values(done, measure), 3, len(done))
                for measure in ("rare_auroc", "end_auroc", "slot_nll")
            ]
            other = len(known) - len(done)
            rows.append([arm, f"{rate:g}", str(len(done)), str(other), *cells])
    heads = ("arm", "rate", "runs", "diverged or failed", "rare AUROC", "end AUROC", "slot NLL")
    return table(heads, rows, 1)


def differences(records: Sequence[Record]) -> dict[int, Fraction]:
    """Returns P8 - U in rare AUROC of each development hospital that has both."""
    found = {}
    for hospital in protocol.DEVELOPMENT:
        own = {record["arm"]: record for record in records if record["hospital"] == hospital}
        try:
            sides = [value(own[arm], "rare_auroc") for arm in ("P8", "U")]
        except (KeyError, NoValueError):
            continue
        found[hospital] = sides[0] - sides[1]
    return found


def tables(study: Study) -> dict[str, Callable[[], str]]:
    """Returns what each marker of a page stands for, by its name."""
    return {"decisive pilot": partial(pilot, study)}
