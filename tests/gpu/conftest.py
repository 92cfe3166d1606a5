"""Workers that run side by side (pytest -n 8) share one GPU: who measures its memory, or takes much
of it, has it for itself, and what a test took is given back after it."""

import fcntl
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

GREEDY = 1 << 30  # bytes that a worker may keep from test to test


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, how)
        yield  # closing unlocks


@contextmanager
def turn(folder: Path, alone: bool) -> Iterator[None]:
    """With others, or with nobody: who waits to be alone lets nobody else in before."""
    gate, room = folder / "dive-gpu-gate.lock", folder / "dive-gpu-room.lock"
    if alone:
        with locked(gate, fcntl.LOCK_EX), locked(room, fcntl.LOCK_EX):
            yield
        return
    with room.open("a") as file:
        with locked(gate, fcntl.LOCK_EX):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


@pytest.fixture
def alone() -> None:
    """For a test that nobody may share the GPU with."""


@pytest.fixture(autouse=True)
def _turn(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    # the parent is common to the workers of a run
    folder = tmp_path_factory.getbasetemp().parent
    with turn(folder, "alone" in request.fixturenames):
        yield
        if torch.cuda.is_available() and torch.cuda.memory_reserved() > GREEDY:
            gc.collect()
            torch.cuda.empty_cache()
