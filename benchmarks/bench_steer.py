"""`dive.ops.steer` on a CPU: what a call costs beside its arithmetic, and against plain PyTorch.

    python -m pytest benchmarks/bench_steer.py --benchmark-only
    python -m benchmarks.bench_steer [--rounds 200]    # writes results/cpu-steer.json

Small: 1 x 64, rank 4, where the call is all overhead. "arithmetic" runs the same tensor operations
with neither checks nor dispatch nor gradient; "bare function" is an autograd.Function around them.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dive import ops, reference
from dive.ops import steering

TOY = os.environ.get("DIVE_BENCH_TOY") == "1"
SMALL = (1, 64, 4)
LARGE = (16, 64, 4) if TOY else (2048, 1024, 16)
CALLS = 1 if TOY else 50


class _Bare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: torch.Tensor) -> torch.Tensor:
        out, pre, rstd = steering._forward(*args, None, "silu", False, 1e-6, True)
        ctx.save_for_backward(*args, pre, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        saved = ctx.saved_tensors
        return steering._backward(grad, *saved[:6], None, *saved[6:], "silu", False)


def variants(tokens: int, width: int, rank: int, backward: bool) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    shapes = ((tokens, width), (rank, width), (rank,), (width, rank), (width,), ())
    args = [torch.randn(shape).requires_grad_() for shape in shapes]
    plain = [x.detach() for x in args]
    upstream = torch.randn(tokens, width)

    def run(function: Callable[..., torch.Tensor]) -> Callable[[], object]:
        if backward:
            return lambda: torch.autograd.grad(function(*args), args, upstream)
        return lambda: function(*args)

    functions = {"dive": run(ops.steer), "bare function": run(_Bare.apply)}
    functions["reference"] = run(reference.steer)
    if not backward:
        functions["arithmetic"] = lambda: steering._forward(*plain, None, "silu", False, 1e-6, True)
    return functions


@pytest.mark.parametrize("name", ["dive", "bare function", "reference"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
def test_steer(benchmark, shape: tuple[int, int, int], backward: bool, name: str) -> None:
    torch.set_num_threads(1)
    benchmark.group = f"{shape} backward={backward}"
    benchmark(variants(*shape, backward)[name])


def main() -> None:
    from benchmarks.timing import interleaved, write

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = []
    for (tokens, width, rank), calls in ((SMALL, CALLS), (LARGE, 1)):
        for backward in (False, True):
            functions = variants(tokens, width, rank, backward)

            def repeated(function: Callable[[], object], times: int = calls) -> Callable[[], None]:
                def run() -> None:
                    for _ in range(times):
                        function()

                return run

            rounds = options.rounds if calls > 1 else max(3, options.rounds // 10)
            seconds = interleaved({k: repeated(f) for k, f in functions.items()}, rounds)
            micros = {k: 1e6 * v["cpu"] / calls for k, v in seconds.items()}
            what = "forward+backward" if backward else "forward, gradients on"
            cases.append(
                {
                    "case": what,
                    "tokens": tokens,
                    "width": width,
                    "rank": rank,
                    "cpu_microseconds_a_call": micros,
                }
            )
            print(tokens, what, {k: f"{v:.1f} us" for k, v in micros.items()})
    path = write(
        "cpu-steer",
        {
            "what": "steer, float32, CPU, 1 thread",
            "command": f"python -m benchmarks.bench_steer --rounds {options.rounds}",
            "cases": cases,
        },
    )
    print(path)


if __name__ == "__main__":
    main()
