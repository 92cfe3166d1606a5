"""Every trial, in the order in which `make hard` runs them."""

from hard import threads
from hard.trial import Trial

TRIALS: tuple[Trial, ...] = (threads.TRIAL,)
