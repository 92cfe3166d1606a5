"""Every trial, in the order in which `make hard` runs them."""

from hard import hostile
from hard.trial import Trial

TRIALS: tuple[Trial, ...] = (hostile.TRIAL,)
