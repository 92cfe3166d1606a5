"""Every trial, in the order in which `make hard` runs them."""

from hard import disk, pairs
from hard.trial import Trial

TRIALS: tuple[Trial, ...] = (
    pairs.TRIAL,
    disk.TRIAL,
)
