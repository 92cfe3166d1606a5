"""`dive bench`: the operators and decoding, timed against plain PyTorch and transformers, here.

    results = dive.bench.run(("cross-entropy", "steer", "decode"), device="cpu", seconds=60)

Every case is checked against `dive.reference` (decoding: against the model's own forward) before it
is timed, and its record names the code that was observed to run. All ways of one case run in turns,
together with the floor that the machine sets in the same turns.
"""

from typing import TYPE_CHECKING

from dive import face
from dive.bench.request import OPERATORS
from dive.errors.renamed import warn_renamed

if TYPE_CHECKING:
    from dive.bench.results import Record as Record
    from dive.bench.results import Results as Results
    from dive.bench.results import Unmeasured as Unmeasured
    from dive.bench.results import Wrong as Wrong
    from dive.bench.runner import run as run

__all__ = ["OPERATORS", "Record", "Results", "Unmeasured", "Wrong", "run"]

_NEW_NAMES = {"Row": "Record", "NotRun": "Unmeasured"}
# modules that import torch are imported on first use
_face = face(__name__, {"run": "runner"} | dict.fromkeys(__all__[1:-1], "results"))


def __getattr__(name: str) -> object:
    if name in _NEW_NAMES:
        warn_renamed(f"{__name__}.{name}", f"{__name__}.{_NEW_NAMES[name]}")
    return _face(_NEW_NAMES.get(name, name))
