"""`dive.ops.steer_grouped_` against a loop over `dive.ops.steer`, adapter by adapter.

    python -m pytest benchmarks/bench_steer_grouped.py --benchmark-only
    python -m benchmarks.bench_steer_grouped [--device cuda] [--rounds 200]

The second writes benchmarks/results/<device>-steer-grouped.json, case by case. Every call steers
hidden in place, as an engine does after a layer:

dive                tokens of several adapters and of none
one adapter         the same call, all tokens with one adapter
no adapter          the same call, no token with one
loop over steer     for each adapter its tokens are gathered, steered and put back, in PyTorch; on a
                    GPU it waits for the device to learn how many they are
replayed            (GPU) a graph of the call: what an engine runs
floor               hidden and residual read once and hidden written once, at the rate of a copy
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.timing import TOY
from dive import ops, reference
from dive.bench import steer
from dive.bench.case import reseed


class Case(NamedTuple):
    """mixed: the tokens of an adapter do not follow one another, as in decoding."""

    name: str
    tokens: int
    width: int
    rank: int
    adapters: int
    mixed: bool
    dtype: str


def cases(device: str) -> Iterator[Case]:
    if TOY:
        yield Case("toy", 12, 64, 4, 3, True, "float32")
        return
    for dtype in ("float32", "bfloat16") if device == "cpu" else ("bfloat16",):
        yield Case(f"64 requests, {dtype}", 64, 4096, 16, 5, True, dtype)
        yield Case(f"512 tokens of 6 prompts, {dtype}", 512, 4096, 16, 5, False, dtype)
        yield Case(f"512 tokens, mixed, {dtype}", 512, 4096, 16, 5, True, dtype)
    if device != "cpu":
        for tokens in (1, 16, 256, 2048, 8192):
            name, mixed = f"{tokens} tokens, bfloat16", tokens <= 256
            yield Case(name, tokens, 4096, 16, 5, mixed, "bfloat16")
        yield Case("64 requests, rank 128, bfloat16", 64, 4096, 128, 5, True, "bfloat16")


def inputs(case: Case, device: torch.device) -> list[Tensor]:
    """Returns the arguments; down and up have the dtype of hidden, as an engine keeps them.

    hidden is small beside residual, so that a thousand calls leave it finite.
    """
    reseed(0, device)
    dtype = getattr(torch, case.dtype)
    shapes = ((case.rank, case.width), (case.rank,), (case.width, case.rank), (case.width,))
    down, bias, up, static = (torch.randn(case.adapters, *s, device=device) for s in shapes)
    hidden = torch.zeros(case.tokens, case.width, device=device, dtype=dtype)
    residual = torch.randn(case.tokens, case.width, device=device).to(dtype)
    own = torch.arange(case.tokens, device=device) % (case.adapters + 1) - 1
    own = own if case.mixed else own.sort().values
    scale = torch.full((case.adapters,), 1e-3, device=device)
    down /= case.width**0.5
    return [hidden, residual, own, down.to(dtype), bias, up.to(dtype), static, scale]


def loop(hidden: Tensor, residual: Tensor, own: Tensor, *parameters: Tensor) -> None:
    for which in range(parameters[0].shape[0]):
        index = (own == which).nonzero()[:, 0]
        if index.numel():
            old = hidden[index]
            h = old.float() + residual[index]
            # the state in the dtype of the stream, as a layer that returned it would pass it on
            given = h.to(hidden.dtype)
            steered = ops.steer(given, *(one[which] for one in parameters))
            hidden[index] = (old.float() + (steered.float() - given.float())).to(hidden.dtype)


def variants(case: Case, device: torch.device) -> dict[str, Callable[[], object]]:
    given = inputs(case, device)

    def calling(function: Callable[..., None], own: Tensor) -> Callable[[], object]:
        args = [given[0].clone(), given[1], own, *given[3:]]

        def call() -> Tensor:
            function(*args)
            return args[0]

        return call

    mixed = given[2]
    functions = {
        "dive": calling(ops.steer_grouped_, mixed),
        "one adapter": calling(ops.steer_grouped_, torch.zeros_like(mixed)),
        "no adapter": calling(ops.steer_grouped_, torch.full_like(mixed, -1)),
        "loop over steer": calling(loop, mixed),
    }
    if device.type == "cuda":
        for name in ("dive", "one adapter", "no adapter"):
            functions[f"{name}, replayed"] = timing.graphed(functions[name], device)
    return functions


def measure(case: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    functions, failed = timing.working(variants(case, device))
    floor_by, copying = steer.copy(inputs(case, device)[1])
    taken = timing.interleaved({"copy": copying, **functions}, rounds, device)
    copied = taken.pop("copy")
    seconds = {"floor": {kind: 1.5 * value for kind, value in copied.items()}, **taken}
    clock = timing.clock(device)
    print(case.name, {k: f"{1e6 * v[clock]:.1f} us" for k, v in seconds.items()}, failed)
    return {
        "case": case.name,
        **{key: value for key, value in case._asdict().items() if key != "name"},
        "seconds": seconds,
        "floor_by": floor_by,
        "not_run": failed,
    }


@pytest.mark.parametrize("name", ["dive", "one adapter", "no adapter", "loop over steer"])
@pytest.mark.parametrize("case", list(cases("cpu"))[:2], ids=lambda case: case.name)
def test_steer_grouped(benchmark: Any, case: Case, name: str) -> None:
    torch.set_num_threads(1)
    benchmark.group = case.name
    assert benchmark(variants(case, timing.CPU)[name]) is not None


def test_the_ways_agree() -> None:
    case = Case("small", 20, 64, 4, 3, True, "float32")
    want, *others = inputs(case, timing.CPU)
    got, looped = want.clone(), want.clone()
    reference.steer_grouped_(want, *others)
    ops.steer_grouped_(got, *others)
    loop(looped, *others)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(looped, want)
    assert want.any()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default=timing.default_device().type)
    parser.add_argument("--rounds", type=int, default=2 if TOY else 25)
    timing.add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    head = {
        "what": f"steer_grouped_ on a {'CPU, 1 thread' if device.type == 'cpu' else 'GPU'}",
        "rounds": options.rounds,
    }
    name = f"{timing.short_name(device)}-steer-grouped"
    results = timing.ResultsFile(name, head, device, **timing.options_of(options))
    for case in cases(device.type):
        if results.wanted(case.name):
            results.add(measure(case, device, options.rounds))
    print(results.close())


if __name__ == "__main__":
    main()
