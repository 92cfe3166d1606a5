"""What the optional metrics need beyond this package, for `dive doctor`."""

from importlib.util import find_spec
from typing import Any


def requirements() -> list[dict[str, Any]]:
    """One dict for each thing: name, present (bool), where it must lie, how to get it."""
    return [
        {
            "name": "nltk (METEOR)",
            "present": find_spec("nltk") is not None,
            "where": "in this Python environment",
            "how": "pip install nltk",
        },
    ]
