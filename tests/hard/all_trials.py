"""Every trial, in the order in which `make hard` runs them."""

from tests.hard import bindings, disk, hostile, pairs, threads
from tests.hard.kills import DISTILL, GENERATE
from tests.hard.trial import Trial

TRIALS: tuple[Trial, ...] = (
    GENERATE,
    DISTILL,
    pairs.TRIAL,
    disk.TRIAL,
    hostile.TRIAL,
    threads.TRIAL,
    bindings.TRIAL,
)
