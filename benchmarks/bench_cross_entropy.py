"""`dive.ops.decisive_cross_entropy` on a CPU: forward and backward against plain PyTorch.

    python -m pytest benchmarks/bench_cross_entropy.py --benchmark-only
    python -m benchmarks.bench_cross_entropy [--threads 1] [--rounds 7]    # results/*.json

`floor` is the two products alone, over the live rows, in one piece and into memory that is there:
what no implementation can beat. `torch core` is F.linear_cross_entropy, with the weights applied to
its rows. All see the same N rows; "on live rows" means that the caller gathered them first.
"""

import argparse
import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from dive import ops, reference

TOY = os.environ.get("DIVE_BENCH_TOY") == "1"
ROWS, WIDTH, VOCAB = (48, 16, 128) if TOY else (1920, 1024, 32000)
LIVE = {"third live": ROWS // 3, "all live": ROWS}


def variants(live: int, dtype: torch.dtype = torch.float32) -> dict[str, Callable[[], object]]:
    """Forward and backward of each, on random normal data with `live` of ROWS rows weighted 1."""
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH).to(dtype).requires_grad_()
    head = (torch.randn(VOCAB, WIDTH) / WIDTH**0.5).to(dtype)
    targets = torch.randint(VOCAB, (ROWS,))
    chosen = torch.randperm(ROWS)[:live].sort().values
    weights = torch.zeros(ROWS).index_fill_(0, chosen, 1.0)
    dense = torch.randn(live, WIDTH).to(dtype)
    logits, back = dense.new_empty(live, VOCAB), torch.empty_like(dense)

    def backward(loss: torch.Tensor) -> None:
        hidden.grad = None
        loss.backward()

    def core(states: torch.Tensor, wanted: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        rows = F.linear_cross_entropy(states, head, wanted, reduction="none")
        return (rows * by).sum() / by.sum()

    def floor() -> None:
        torch.mm(dense, head.T, out=logits)
        torch.mm(logits, head, out=back)

    given = (hidden, head, targets, weights)
    all_of_them: dict[str, Callable[[], object]] = {
        "dive": lambda: backward(ops.decisive_cross_entropy(*given).loss),
        "floor": floor,
        "reference": lambda: backward(reference.decisive_cross_entropy(*given).loss),
    }
    if hasattr(F, "linear_cross_entropy"):
        all_of_them["torch core"] = lambda: backward(core(hidden, targets, weights))
        if live < ROWS:
            all_of_them["torch core on live rows"] = lambda: backward(
                core(hidden[chosen], targets[chosen], weights[chosen])
            )
    return all_of_them


NAMES = ("dive", "floor", "reference", "torch core", "torch core on live rows")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("live", LIVE)
def test_forward_and_backward(benchmark, live: str, name: str) -> None:
    functions = variants(LIVE[live])
    if name not in functions:
        pytest.skip(f"{name}: not there, or the same as another")
    benchmark.group = live
    benchmark.pedantic(functions[name], rounds=3, warmup_rounds=1)


def main() -> None:
    from benchmarks.timing import interleaved, write

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="also bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = []
    for name, live in LIVE.items():
        for dtype in options.dtypes:
            seconds = interleaved(variants(live, getattr(torch, dtype)), options.rounds)
            by = {clock: seconds["dive"][clock] for clock in ("cpu", "wall")}
            cases.append(
                {
                    "case": name,
                    "dtype": dtype,
                    "live_rows": live,
                    "seconds": seconds,
                    "times_dive": {  # of the same clock; floor: the share of it that is reached
                        clock: {other: seconds[other][clock] / by[clock] for other in seconds}
                        for clock in by
                    },
                }
            )
            print(name, dtype, {k: f"{v:.2f}x" for k, v in cases[-1]["times_dive"]["cpu"].items()})
    suffix = "" if options.threads == 1 else f"-{options.threads}-threads"
    path = write(
        f"cpu-cross-entropy{suffix}",
        {
            "what": "decisive_cross_entropy, forward and backward, CPU",
            "command": f"python -m benchmarks.bench_cross_entropy --threads {options.threads} "
            f"--rounds {options.rounds} --dtypes {' '.join(options.dtypes)}",
            "threads": options.threads,
            "rounds": options.rounds,
            "shape": {"rows": ROWS, "width": WIDTH, "vocabulary": VOCAB},
            "cases": cases,
        },
    )
    print(path)


if __name__ == "__main__":
    main()
