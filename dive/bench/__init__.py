"""`dive bench`: the operators and decoding, timed against plain PyTorch and transformers, here.

    results = dive.bench.run(("cross-entropy", "steer", "decode"), device="cpu", seconds=60)

Every case is checked against `dive.reference` (decoding: against the model's own forward) before it
is timed, and says which code ran by watching it run. All ways of one case run in turns, beside the
floor that the same machine sets in the same turns.
"""

from dive.bench.results import NotRun, Results, Row, Wrong
from dive.bench.runner import OPERATORS, run

__all__ = ["OPERATORS", "NotRun", "Results", "Row", "Wrong", "run"]
