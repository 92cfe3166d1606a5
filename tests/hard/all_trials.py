"""Every trial, in the order in which `make hard` runs them."""

from hard import bindings, disk, hostile, pairs, threads
from hard.kills import DISTILL, GENERATE
from hard.trial import Trial

TRIALS: tuple[Trial, ...] = (
    GENERATE,
    DISTILL,
    pairs.TRIAL,
    disk.TRIAL,
    hostile.TRIAL,
    threads.TRIAL,
    bindings.TRIAL,
)
