"""Which process this one is of those that train together, as `torchrun` numbers them."""

import os


def rank() -> int:
    """The number of this process; the first one, 0, writes files and shows progress."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))
