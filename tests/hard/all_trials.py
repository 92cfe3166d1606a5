"""Every trial, in the order in which `make hard` runs them."""

from hard import bindings
from hard.trial import Trial

TRIALS: tuple[Trial, ...] = (bindings.TRIAL,)
