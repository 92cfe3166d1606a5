"""`dive.ops.decisive_cross_entropy`: forward and backward against its peers (benchmarks/peers.py).

    python -m pytest benchmarks/bench_cross_entropy.py --benchmark-only
    python -m benchmarks.bench_cross_entropy [--device cuda] [--threads 1] [--rounds 7]

The second writes benchmarks/results/<device>-cross-entropy.json, case by case. `floor` is the
matrix products alone, over the live rows, in one piece and into allocated memory: one for the
loss, two with its gradient, one more for a teacher. `forward` is the loss without gradients.
"on live rows" is given rows that were gathered before the clock starts.
"""

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks import peers, timing
from benchmarks.timing import TOY
from dive.bench.cross_entropy import MODES, call, floors


class Case(NamedTuple):
    name: str
    tokens: int
    width: int
    vocabulary: int
    live: int
    dtype: str = "float32"
    distils: bool = False


def cases(device: str, dtypes: list[str]) -> Iterator[Case]:
    """Yields the cases by priority. VLM batch: 8 x (576 image + 64 prompt + 160 report)."""
    if TOY:
        yield Case("toy, third live", 48, 16, 128, 16)
        yield Case("toy, third live, KD", 48, 16, 128, 16, distils=True)
    elif device == "cpu":
        for dtype in dtypes or ["float32"]:
            kind = "" if dtype == "float32" else f", {dtype}"
            yield Case(f"1920 tokens, third live{kind}", 1920, 1024, 32000, 640, dtype)
            yield Case(f"1920 tokens, all live{kind}", 1920, 1024, 32000, 1920, dtype)
        yield Case("480 tokens, third live", 480, 1024, 32000, 160)
        yield Case("1920 tokens, third live, KD", 1920, 1024, 32000, 640, distils=True)
        yield Case("1920 tokens, third live, V 8000", 1920, 1024, 8000, 640)
    else:
        for dtype in dtypes or ["bfloat16"]:
            wide, vlm = (4096, 128256), (6400, 4096, 128256, 1280)
            yield Case(f"4096 tokens, all live, {dtype}", 4096, *wide, 4096, dtype)
            yield Case(f"VLM batch, 20% live, {dtype}", *vlm, dtype)
            yield Case(f"8192 tokens, all live, {dtype}", 8192, *wide, 8192, dtype)
            yield Case(f"4096 tokens, all live, KD, {dtype}", 4096, *wide, 4096, dtype, True)
            yield Case(f"VLM batch, 20% live, KD, {dtype}", *vlm, dtype, True)
        yield Case("4096 tokens, half live, bfloat16", 4096, 4096, 128256, 2048, "bfloat16")
        yield Case("4096 tokens, V 32000, bfloat16", 4096, 4096, 32000, 4096, "bfloat16")
        yield Case("4096 tokens, V 262208, bfloat16", 4096, 2560, 262208, 4096, "bfloat16")
        yield Case("4096 tokens, all live, float16", 4096, 4096, 128256, 4096, "float16")
        yield Case("4096 tokens, V 32000, float32", 4096, 4096, 32000, 4096, "float32")


def problem(case: Case, device: torch.device) -> peers.Problem:
    dtype = getattr(torch, case.dtype)
    sizes = (case.tokens, case.width, case.vocabulary, case.live)
    return peers.Problem.random(*sizes, dtype, device, case.distils)


def measure(case: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    torch._dynamo.reset()  # the compiler limits how often it compiles a function
    p = problem(case, device)
    found, why = peers.losses(p)
    seconds: dict[str, Any] = {}
    peak: dict[str, dict[str, int]] = {}
    floor = floors(p)
    for mode in MODES:
        functions = {name: call(*one, mode) for name, one in found.items()}
        functions, failed = timing.working(functions)
        why |= {f"{name} ({mode})": reason for name, reason in failed.items()}
        seconds[mode] = timing.interleaved({"floor": floor[mode], **functions}, rounds, device)
        for name, function in functions.items():
            peak.setdefault(name, {})[mode] = timing.peak_extra_bytes(function, device)
    product = 2 * case.live * case.width * case.vocabulary
    products = {"forward": 1 + case.distils, "forward+backward": 2 + case.distils}
    flop = {mode: number * product for mode, number in products.items()}
    clock = timing.clock(device)
    times = {mode: {name: one[clock] for name, one in seconds[mode].items()} for mode in MODES}
    print(case.name, {k: f"{1e3 * v:.2f} ms" for k, v in times["forward+backward"].items()}, why)
    return {
        "case": case.name,
        **{key: value for key, value in case._asdict().items() if key != "name"},
        "flop": flop,
        "seconds": seconds,
        "tflops": {
            mode: {name: flop[mode] / one / 1e12 for name, one in times[mode].items()}
            for mode in MODES
        },
        "times_dive": {  # by the same clock; floor: the share of it that is reached
            mode: {name: one / times[mode]["dive"] for name, one in times[mode].items()}
            for mode in MODES
        },
        "peak_extra_bytes": peak,
        "not_run": why,
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["dive", "floor", *peers.PEERS])
@pytest.mark.parametrize("case", list(cases("cpu", []))[:1], ids=lambda case: case.name)
def test_cross_entropy(benchmark: Any, case: Case, name: str, mode: str) -> None:
    torch.set_num_threads(1)
    p = problem(case, timing.CPU)
    benchmark.group = f"{case.name}, {mode}"
    if name == "floor":
        function = floors(p)[mode]
    else:
        make = peers.dive if name == "dive" else peers.PEERS[name]
        try:
            function = call(p, make(p), mode)
        except peers.Unavailable as reason:
            pytest.skip(f"{name}: {reason}")
    benchmark.pedantic(function, rounds=3, warmup_rounds=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default=timing.default_device().type)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--rounds", type=int, default=2 if TOY else 7)
    parser.add_argument("--dtypes", nargs="+", default=[], help="of the first cases")
    timing.add_options(parser)
    options = parser.parse_args()
    device = torch.device(options.device)
    suffix = ""
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
        suffix = "" if options.threads == 1 else f"-{options.threads}-threads"
    head = {
        "what": f"decisive_cross_entropy on a {'CPU' if device.type == 'cpu' else 'GPU'}",
        "threads": options.threads if device.type == "cpu" else None,
        "rounds": options.rounds,
    }
    results = timing.ResultsFile(
        f"{timing.short_name(device)}-cross-entropy{suffix}",
        head,
        device,
        **timing.options_of(options),
    )
    for case in cases(device.type, options.dtypes):
        if results.wanted(case.name):
            results.add(measure(case, device, options.rounds))
    print(results.close())


if __name__ == "__main__":
    main()
