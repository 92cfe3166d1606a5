"""The order of the steps of all chunks of `dive::decisive_cross_entropy`: logits, row pass, states.

With one buffer of logits the steps follow one another. With two, the row pass of chunk i, which is
bound by memory, overlaps on its own stream with the product of chunk i + 1, which is bound by
compute; the states of chunk i follow.
"""

from collections.abc import Callable
from typing import Protocol

import torch

Step = Callable[[int], None]  # of a chunk, by its number


class RowPassStream(Protocol):
    """The stream on which row passes run."""

    def run(self, chunk: int, step: Step) -> None:
        """Runs a step after everything launched so far."""

    def wait(self, chunk: int) -> None:
        """Makes later launches wait for this chunk's step."""

    def close(self) -> None:
        """Makes later launches wait for every step."""


class SameStream:
    """The current stream: steps run in the order of their launch."""

    def run(self, chunk: int, step: Step) -> None:
        step(chunk)

    def wait(self, chunk: int) -> None:
        pass

    def close(self) -> None:
        pass


class SideStream:
    """A second stream of a GPU; a graph capture of the current one includes it."""

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
        # the memory of the steps belongs to the current stream, which may reuse it from here on
        self.current.wait_stream(self.stream)


def row_pass_stream(device: torch.device, buffers: int) -> RowPassStream:
    """Returns the stream of row passes for a number of buffers; a CPU has only one."""
    return SideStream(device) if buffers > 1 and device.type == "cuda" else SameStream()


def in_turns(
    chunks: int, buffers: int, logits: Step, rows: Step, states: Step, row_passes: RowPassStream
) -> None:
    """Runs all steps of all chunks. Chunk i uses buffer i % buffers for all its steps."""
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
