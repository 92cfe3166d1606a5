"""Fills kernels/tuned.py on a GPU: the fastest configuration of every kernel, key by key.

    python -m benchmarks.tune                  every key of this GPU: hours
    python -m benchmarks.tune --dtype bfloat16 --width 4096 --rank 16       what gpu.sh tune does

Candidates of a kernel run in whole calls of its operator: each once, for half of the key's time,
and the fastest ones then in turns, where the median decides; configurations of other kernels stay
as they are. <device>-tune.json among the results has every time, and tuned.py next to it is the
table to copy to kernels/ from a machine that only returns results. Without a GPU, DIVE_BENCH_TOY=1
runs the same code at toy size under Triton's interpreter and does not change kernels/.
"""

import argparse
import itertools
import os
import pprint
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TOY = os.environ.get("DIVE_BENCH_TOY") == "1"
if TOY:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import timing  # noqa: E402
from dive.kernels import cross_entropy_rows, launch_table, steer, steer_backward, tuned  # noqa: E402

DEVICE = torch.device("cpu" if TOY else "cuda")
TOKENS = 8 if TOY else 16384
CHUNK = 2 if TOY else 512  # rows of logits
WIDTHS = (64,) if TOY else (2048, 4096, 8192)
VOCABULARY = 1200 if TOY else 128256
RANKS = (3,) if TOY else (0, 16, 32, 64, 128)
DTYPES = (torch.bfloat16,) if TOY else launch_table.DTYPES
FINALISTS = 8


def candidates(kernel: str) -> Iterator[dict[str, int]]:
    """Yields block sizes and launch options to try."""
    if kernel == "cross_entropy_rows":
        for block, warps in itertools.product((2048, 4096, 8192), (8, 16, 32)):
            yield {"BLOCK": block, "num_warps": warps}
    elif kernel == "cross_entropy_scale":
        for block, warps in itertools.product((1024, 2048, 4096), (4, 8)):
            yield {"BLOCK": block, "num_warps": warps}
    elif kernel == "steer_reduce":
        for block, warps in itertools.product((32, 64, 128), (2, 4)):
            yield {"BLOCK_D": block, "BLOCK_P": 16, "num_warps": warps}
    else:
        sizes = itertools.product((16, 32, 64), (32, 64, 128, 256), (4, 8), (2, 3))
        # the second kernel of the backward pass does not depend on the number of programs
        counts = (None,) if kernel == "steer_parameters" else (1, 2, 4)
        for (tokens, columns, warps, stages), residents in itertools.product(sizes, counts):
            more = {} if residents is None else {"residents": residents}
            yield {
                "BLOCK_T": tokens, "BLOCK_D": columns, "num_warps": warps, "num_stages": stages,
                **more,
            }  # fmt: skip


def steer_call(kernel: str, dtype: torch.dtype, rank: int, width: int) -> Callable[[], object]:
    h, grad = (torch.randn(TOKENS, width, device=DEVICE).to(dtype) for _ in range(2))
    shapes = ((rank, width), (rank,), (width, rank), (width,), ())
    parameters = [torch.randn(shape, device=DEVICE) for shape in shapes]
    if kernel == "steer_forward":
        return lambda: steer.forward(h, *parameters, None, "silu", False, 1e-6, True)
    _, pre, rstd = steer.forward(h, *parameters, None, "silu", False, 1e-6, True)
    return lambda: steer_backward.backward(grad, h, *parameters, None, pre, rstd, "silu", False)


def loss_call(kernel: str, dtype: torch.dtype, width: int) -> Callable[[], object]:
    if kernel == "cross_entropy_scale":
        stored = torch.randn(TOKENS, width, device=DEVICE).to(dtype)
        factors = torch.ones(TOKENS, device=DEVICE)
        rows = torch.arange(TOKENS, device=DEVICE)
        grad = torch.ones((), device=DEVICE)
        return lambda: cross_entropy_rows.backward(grad, rows, stored, factors, factors, TOKENS)

    vocab = VOCABULARY
    logits = torch.randn(CHUNK, cross_entropy_rows.row_stride(vocab), device=DEVICE)
    gradient = cross_entropy_rows.gradient_view(logits, vocab, dtype)

    def vector(kind: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(CHUNK, device=DEVICE, dtype=kind)

    flags = vector(torch.bool)
    results = (vector(), vector(), vector(torch.int64), vector())
    given = (vector(torch.int64), flags, vector(), vector(), flags, results, vocab, None, 1.0)
    # the output of the last call serves as logits of the next
    return lambda: cross_entropy_rows.turn_into_gradient(logits, None, None, gradient, *given)


def keys(arguments: argparse.Namespace) -> Iterator[tuple[str, torch.dtype, int, int]]:
    """Yields kernel, dtype, rank and width of the requested keys."""
    for dtype in DTYPES:
        if arguments.dtype and arguments.dtype != str(dtype).removeprefix("torch."):
            continue
        for kernel in ("cross_entropy_rows", "cross_entropy_scale", "steer_forward",
                       "steer_backward", "steer_parameters", "steer_reduce"):  # fmt: skip
            if arguments.kernel and arguments.kernel != kernel:
                continue
            if kernel == "cross_entropy_rows":
                yield kernel, dtype, 0, VOCABULARY
                continue
            ranks = RANKS if kernel.startswith("steer") else (0,)
            for rank, width in itertools.product(ranks, WIDTHS):
                of_rank = arguments.rank in (None, rank) or not kernel.startswith("steer")
                if arguments.width in (None, width) and of_rank:
                    yield kernel, dtype, rank, width


def key_of(kernel: str, dtype: torch.dtype, rank: int, width: int) -> tuple[Any, ...]:
    """Returns the key in the table."""
    capability = launch_table._capability(DEVICE.index) if DEVICE.type == "cuda" else 0
    name = str(dtype).removeprefix("torch.")
    return kernel, capability, name, launch_table.padded_rank(rank), launch_table.bucket(width)


def set_options(key: tuple[Any, ...], row: dict[str, int] | None) -> None:
    tuned.TUNED.pop(key, None)
    if row is not None:
        tuned.TUNED[key] = row
    launch_table._configured.cache_clear()


def tune(
    kernel: str, dtype: torch.dtype, rank: int, width: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Sets the fastest configuration in the table; returns the medians of the second round."""
    key = key_of(kernel, dtype, rank, width)
    if kernel.startswith("steer"):
        call = steer_call(kernel, dtype, rank, width)
    else:
        call = loss_call(kernel, dtype, width)

    def taking(row: dict[str, int] | None) -> Callable[[], object]:
        def run() -> object:
            set_options(key, row)
            return call()

        return run

    def median(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        times = timing.interleaved(functions, rounds, DEVICE)
        return {label: taken[timing.clock(DEVICE)] for label, taken in times.items()}

    rows: dict[str, dict[str, int] | None] = {"default": None}
    first, refused = {}, {}
    # in random order, so that what there is no time for is a random part
    drawn = list(candidates(kernel))
    random.Random(0).shuffle(drawn)
    end, left = time.monotonic() + seconds / 2, 0
    for row in drawn[:2] if TOY else drawn:
        if time.monotonic() > end:
            left += 1
            continue
        label = " ".join(f"{k}={v}" for k, v in row.items())
        try:  # compiles; some need more registers or shared memory than there are
            first |= median({label: taking(row)}, 1)
            rows[label] = row
        except Exception as error:
            refused[label] = f"{type(error).__name__}: {error}"[:200]
    best_first = sorted(first, key=lambda label: first[label])[:FINALISTS]
    times = median({label: taking(rows[label]) for label in ("default", *best_first)}, rounds)
    best = min(times, key=lambda label: times[label])
    # a default that is within the noise of the best is kept
    if times["default"] <= 1.02 * times[best]:
        best = "default"
    set_options(key, rows[best])
    return {
        "key": list(key), "best": best, "row": rows[best], "seconds": times,
        "seconds of one call": first, "refused": refused, "not tried": left,
    }  # fmt: skip


def write() -> None:
    """Writes the table to the results, and on a GPU to kernels/, too."""
    path = Path(launch_table.__file__).with_name("tuned.py")
    head = path.read_text().split("TUNED:", 1)[0]
    body = pprint.pformat(tuned.TUNED, width=96, sort_dicts=True)
    text = f"{head}TUNED: dict[tuple[str, int, str, int, int], dict[str, Any]] = {body}\n"
    for place in (timing.folder() / path.name, *([] if TOY else [path])):
        place.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel")
    parser.add_argument("--dtype")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--rounds", type=int, default=1 if TOY else 15)
    parser.add_argument(
        "--seconds", type=float, default=200, help="per key, half of them to compile"
    )
    timing.add_options(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="as the stages pass it")
    arguments = parser.parse_args()
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        print("needs a CUDA device; DIVE_BENCH_TOY=1 runs it without one")
        return 1
    results = timing.ResultsFile(
        f"{timing.short_name(DEVICE)}-tune",
        {"what": "configurations of kernels/launch_table.py", "rounds": arguments.rounds},
        DEVICE,
        **timing.options_of(arguments),
    )
    for case in results.result["cases"]:  # of the run that this one continues
        set_options(tuple(case["key"]), case["row"])
    wanted = list(keys(arguments))
    for kernel, dtype, rank, width in wanted:
        case = f"{kernel} {dtype} rank {rank} width {width}"
        if results.wanted(case):
            found = tune(kernel, dtype, rank, width, arguments.rounds, arguments.seconds)
            results.add({"case": case, **found})
            write()  # after every key
            print(f"{case}: {found['best']}", flush=True)
    print(results.close())
    return 0 if wanted else 1


if __name__ == "__main__":
    sys.exit(main())
