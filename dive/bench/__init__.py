"""`dive bench`: the operators and decoding, timed against plain PyTorch and transformers, here.

    results = dive.bench.run(("cross-entropy", "steer", "decode"), device="cpu", seconds=60)

Every case is checked against `dive.reference` (decoding: against the model's own forward) before it
is timed, and says which code ran by watching it run. All ways of one case run in turns, beside the
floor that the same machine sets in the same turns.
"""

from typing import TYPE_CHECKING

from dive import face
from dive.bench.asked import OPERATORS

if TYPE_CHECKING:
    from dive.bench.results import NotRun as NotRun
    from dive.bench.results import Results as Results
    from dive.bench.results import Row as Row
    from dive.bench.results import Wrong as Wrong
    from dive.bench.runner import run as run

__all__ = ["OPERATORS", "NotRun", "Results", "Row", "Wrong", "run"]

# what needs torch is imported when it is asked for
__getattr__ = face(__name__, {"run": "runner"} | dict.fromkeys(__all__[1:-1], "results"))
