"""Errors that a user's input causes; any other exception is a bug and keeps its own type."""

from dive.errors.visible import visible


class DiveError(ValueError):
    """Bad input. The message names the object, its value, and what is accepted: "X is Y, want Z".

    A study is named by its id and its location in the file. No text of a report, no patient and no
    path of an image is in a message (see docs/private.md). Control characters are escaped.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


class FallbackWarning(UserWarning):
    """A slower path runs than the expected one; the message says why.

    `warnings.filterwarnings("error", category=dive.FallbackWarning)` makes it an error.
    """


class NonFiniteLoss(DiveError):
    """The loss of a training step is not finite; the message names the studies of the step."""
