"""In which order the chunks of `dive::decisive_cross_entropy` take their steps: logits, row pass,
states.

With one buffer of logits they take them one after another. With two, the row pass of a chunk, which
is bound by memory, runs on a stream of its own beside the product of the next chunk, which is not:
logits of i + 1, then the states of i, whose row pass has had that time.
"""

from collections.abc import Callable
from typing import Protocol

import torch

Step = Callable[[int], None]  # of a chunk, by its number


class RowPassStream(Protocol):
    """Where row passes run."""

    def run(self, chunk: int, step: Step) -> None:
        """After all that was begun so far."""

    def wait(self, chunk: int) -> None:
        """What is begun from now on runs after this chunk's step."""

    def close(self) -> None:
        """What is begun from now on runs after every step."""


class SameStream:
    """Between what is begun before and after it, on the same stream."""

    def run(self, chunk: int, step: Step) -> None:
        step(chunk)

    def wait(self, chunk: int) -> None:
        pass

    def close(self) -> None:
        pass


class SideStream:
    """On a stream beside the current one of a GPU; a capture of that takes it in."""

    def __init__(self, device: torch.device) -> None:
        self.current = torch.cuda.current_stream(device)
        self.stream = torch.cuda.Stream(device)
        self.done: dict[int, torch.cuda.Event] = {}

    def run(self, chunk: int, step: Step) -> None:
        self.stream.wait_stream(self.current)
        with torch.cuda.stream(self.stream):
            step(chunk)
        self.done[chunk] = self.stream.record_event()

    def wait(self, chunk: int) -> None:
        self.current.wait_event(self.done[chunk])

    def close(self) -> None:
        # memory that the steps used is the current stream's, and may be taken again from here on
        self.current.wait_stream(self.stream)


def row_pass_stream(device: torch.device, buffers: int) -> RowPassStream:
    """For so many buffers; on a CPU (the interpreter) there is but one order."""
    return SideStream(device) if buffers > 1 and device.type == "cuda" else SameStream()


def in_turns(
    chunks: int, buffers: int, logits: Step, rows: Step, states: Step, row_passes: RowPassStream
) -> None:
    """All steps of all chunks. Chunk i has buffer i % buffers, from its logits to its states."""
    try:
        for chunk in range(chunks + buffers - 1):
            if chunk < chunks:
                logits(chunk)
                row_passes.run(chunk, rows)
            done = chunk - buffers + 1
            if done >= 0:
                row_passes.wait(done)
                states(done)
    finally:
        row_passes.close()
