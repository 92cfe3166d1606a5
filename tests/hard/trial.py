"""What every trial of this folder is: a number of attempts, and what was wrong in them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Outcome:
    """What came of a trial.

    tried: attempts that were made. faults: a line for each thing that is not as it must be, with
        what repeats it; empty is what is wanted. figures: what else was counted or measured.
    """

    tried: int = 0
    faults: list[str] = field(default_factory=list)
    figures: dict[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A trial by its name: `run(count, seed, folder)` makes `count` attempts in an empty folder.

    full: attempts of `make hard`. short: attempts of the tests, of a few seconds in all.
    """

    name: str
    run: Callable[[int, int, Path], Outcome]
    full: int
    short: int
