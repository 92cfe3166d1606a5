"""Errors that a user's input causes; everything else is a bug and keeps its own type."""

from dive.errors.visible import visible


class DiveError(ValueError):
    """Bad input. The message names the thing, what it got and what it wants.

    Of studies it names the id and the place in their file: no text of a report, no patient, no path
    of an image (see docs/private.md). What a terminal would obey is written out.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


class FallbackWarning(UserWarning):
    """A slower path runs than the one that was to be expected; the message says why.

    `warnings.filterwarnings("error", category=dive.FallbackWarning)` makes it an error.
    """


class NonFiniteLoss(DiveError):
    """Training met a loss that is not a finite number; the message names the studies."""
