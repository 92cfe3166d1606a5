"""Errors that a user's input causes; everything else is a bug and keeps its own type."""


class DiveError(ValueError):
    """Bad input. The message names the thing, what it got and what it wants."""


class FallbackWarning(UserWarning):
    """A slower path runs than the one that was to be expected; the message says why.

    `warnings.filterwarnings("error", category=dive.FallbackWarning)` makes it an error.
    """


class NonFiniteLoss(DiveError):
    """Training met a loss that is not a finite number; the message names the studies."""
