"""The rank of this process among those that train together, as `torchrun` sets it."""

import os


def rank() -> int:
    """The number of this process. The first one, 0, writes files and shows progress."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", 1))
