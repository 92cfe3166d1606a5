"""Processes of the command line that begin in a second: forked from one that has imported all.

A killed process must be a process of its own, and importing torch and transformers takes longer
than what is tried here.
"""

import contextlib
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

PRELOADED = [
    "torch",
    "transformers.trainer",
    "dive.cli",
    "dive.generation",
    "dive.training.distillation",
]


def context() -> ForkServerContext:
    """The server from which processes are forked; it imports `PRELOADED` at the first one."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOADED)
    return made


def start(arguments: Sequence[str], log: Path, most: int | None = None) -> ForkServerProcess:
    """`dive ARGUMENTS` in a process of its own; what it prints goes to the end of `log`.

    most: bytes that no file which it writes may exceed, `log` included: a disk that is full.
    """
    process = context().Process(target=_command, args=(list(arguments), str(log), most))
    process.start()
    return process


def finish(process: ForkServerProcess, seconds: float = 120.0) -> int:
    """Its exit status, negative by a signal; one that takes longer is killed, TimeoutError."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"process {process.pid} took more than {seconds:.0f} s")
    return process.exitcode


def run(
    arguments: Sequence[str], log: Path, seconds: float = 120.0, most: int | None = None
) -> int:
    """`dive ARGUMENTS` to its end; the exit status."""
    return finish(start(arguments, log, most), seconds)


def kill_after(process: ForkServerProcess, seconds: float) -> bool:
    """Kill -9 so long after now; whether it was still running."""
    ends = time.monotonic() + seconds
    while process.exitcode is None and time.monotonic() < ends:
        time.sleep(min(0.001, seconds))
    running = process.exitcode is None
    process.kill()
    process.join()
    return running


def _command(arguments: list[str], log: str, most: int | None) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    with contextlib.suppress(OSError):
        os.close(handle)
    import torch

    from dive.cli import main

    torch.set_num_threads(1)
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    sys.argv = ["dive", *arguments]
    main()
