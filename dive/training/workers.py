"""The processes that read images for the one that trains."""

import gc
import multiprocessing
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from dive.errors import DiveError

T = TypeVar("T")
_ready: set[int] = set()  # pids of workers that are set up

MAX_LOADERS = 8  # processes by default
MIN_IMAGES = 64  # fewer are read sooner than processes start
CHUNK = 64  # studies per task of a process
MAX_LOOKERS = 32  # processes that survey studies; starting more takes longer than it saves

# Forked, so that the backbone is not pickled and examples in memory are shared.
_CAN = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
START_METHOD = "fork" if _CAN else None


def cores() -> int:
    """The cores that this process may use; its share where several ranks run on a machine."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def check_workers(requested: int | None) -> None:
    """DiveError where processes are requested on a system that cannot fork."""
    if requested and START_METHOD is None:
        raise DiveError(
            f"workers is {requested}, and this system cannot fork processes, as Linux can: want "
            "workers=0 (images are decoded by the process that trains)"
        )


def loaders(requested: int | None, images: int) -> int:
    """The number of processes that load data: as requested, or one per core but for one.

    Raises:
        DiveError: see `check_workers`.
    """
    check_workers(requested)
    if requested is not None:
        return requested
    if START_METHOD is None or images < MIN_IMAGES:
        return 0
    return min(MAX_LOADERS, max(1, cores() - 1))


def settle() -> None:
    """Set up a worker. The threads of tokenizers and OpenMP do not survive the fork, and garbage
    collection would copy the pages that it shares with its parent."""
    if os.getpid() not in _ready:
        _ready.add(os.getpid())
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        torch.set_num_threads(1)
        gc.freeze()


@contextmanager
def worker_deaths() -> Iterator[None]:
    """A context that explains the death of one of torch's workers, which may show at any moment.

    Raises:
        DiveError: a worker died. Errors that were raised in a worker are passed on.
    """
    try:
        yield
    except RuntimeError as error:
        # torch's message for a death; "Caught RuntimeError in DataLoader worker process 0" is none
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise DiveError(
            f"a process that decodes images died ({str(error).splitlines()[0]}); give it more "
            "memory, or fewer workers (0: images are decoded by the process that trains)"
        ) from error


class LoaderWorkers:
    """The workers of torch's data loaders, which end with a training whatever ends it.

    Torch ends them when their iterator is collected. An error's traceback keeps it for some time,
    and where the collector of cycles then finds it, its queues are closed before the workers are
    told: torch waits 5 s for each of them (its MP_STATUS_CHECK_INTERVAL).
    """

    def __init__(self) -> None:
        self._iterators: list[weakref.ref[Any]] = []

    def watch(self, loader: DataLoader) -> DataLoader:
        """Return the loader, whose iterators are known from now on."""
        inner = getattr(loader, "base_dataloader", loader)  # accelerate's loader has torch's inside
        begin = inner._get_iterator

        def begin_and_note() -> Any:
            iterator = begin()
            self._iterators.append(weakref.ref(iterator))
            return iterator

        inner._get_iterator = begin_and_note  # type: ignore[method-assign]
        return loader

    def close(self) -> None:
        """End all workers that there still are."""
        for one in self._iterators:
            shut_down = getattr(one(), "_shutdown_workers", None)
            if shut_down is not None:  # not collected, and with workers
                shut_down()
        self._iterators.clear()


_function: Callable[[Any], Any] | None = None


def spread(function: Callable[[Any], T], items: Sequence[Any], workers: int) -> Iterator[T]:
    """Yield `function(item)` of every item, in order, computed in forked processes. Results are
    pickled, `function` is not.

    workers: the most processes; there are also at most one per chunk and `MAX_LOOKERS` in all.
        0 or 1: this process alone.

    Raises:
        DiveError: a process died, mostly because the machine ran out of memory.
    """
    global _function
    if workers < 2 or START_METHOD is None or len(items) < 2 * CHUNK:
        yield from map(function, items)
        return
    workers = min(workers, -(-len(items) // CHUNK), MAX_LOOKERS)
    _function = function
    context = multiprocessing.get_context(START_METHOD)
    pool = ProcessPoolExecutor(workers, context, initializer=settle)
    try:
        chunks = (items[at : at + CHUNK] for at in range(0, len(items), CHUNK))
        for results in pool.map(_chunk, chunks):
            yield from results
    except BrokenProcessPool as error:
        raise DiveError(
            f"one of {workers} processes that survey studies died, perhaps for lack of memory; "
            "workers=0 reads in one process"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        _function = None


def _chunk(items: Sequence[Any]) -> list[Any]:
    assert _function is not None
    return [_function(item) for item in items]
