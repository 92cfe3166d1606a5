"""`dive.ops.steer` against PyTorch, and the cost of a call in addition to its arithmetic.

    python -m pytest benchmarks/bench_steer.py --benchmark-only
    python -m benchmarks.bench_steer [--device cuda] [--rounds 200]

The second writes benchmarks/results/<device>-steer.json, case by case. `forward` is recorded for
gradients. `floor` is the least that must be read and written, at the rate of the fastest of several
copies (dive/bench/rates.py) measured in the same run: h and h' forward, and h and both gradients
backward. No library has a kernel for this edit; the ways of PyTorch:

reference           dive/reference.py, eager and compiled
hand algebra        the fewest PyTorch calls: the state is not normalised, as rstd * (h A^T) is the
                    same, and v is another column of B, so that addmm does the rest; its parameters
                    are rounded to the stream's dtype beforehand
bare function       (1 x 64, CPU) an autograd.Function around the arithmetic, without checks
arithmetic          (1 x 64, CPU) the same tensor operations without a gradient
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import timing
from benchmarks.peers import compiled
from benchmarks.timing import TOY
from dive import ops, reference
from dive.bench import steer
from dive.bench.steer import PASSES
from dive.ops import steering_torch

MODES = tuple(PASSES)


class Case(NamedTuple):
    name: str
    tokens: int
    width: int
    rank: int
    dtype: str = "float32"


SMALL = Case("a call's overhead", 1, 64, 4)


def cases(device: str) -> Iterator[Case]:
    if TOY:
        yield Case("toy", 16, 64, 4)
    elif device == "cpu":
        yield Case("2048 tokens", 2048, 1024, 16)
        yield Case("256 tokens", 256, 1024, 16)
        yield Case("2048 tokens, rank 64", 2048, 1024, 64)
        yield Case("2048 tokens, bfloat16", 2048, 1024, 16, "bfloat16")
    else:
        for rank in (16, 0, 64, 128):
            yield Case(f"16384 tokens, rank {rank}, bfloat16", 16384, 4096, rank, "bfloat16")
        yield Case("2048 tokens, rank 16, bfloat16", 2048, 4096, 16, "bfloat16")
        yield Case("16384 tokens, width 2560, bfloat16", 16384, 2560, 16, "bfloat16")
        yield Case("16384 tokens, rank 16, float16", 16384, 4096, 16, "float16")
        yield Case("16384 tokens, rank 16, float32", 16384, 4096, 16, "float32")
    yield SMALL


class _Bare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> Tensor:
        out, pre, rstd = steering_torch.forward(*args, None, "silu", False, 1e-6, True)
        ctx.save_for_backward(*args, pre, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        saved = ctx.saved_tensors
        return steering_torch.backward(grad, *saved[:6], None, *saved[6:], "silu", False)


def hand_algebra(h: Tensor, down: Tensor, bias: Tensor, up_static: Tensor, scale: Tensor) -> Tensor:
    """Steers with up_static [R + 1, D]: B^T, and v below it."""
    rstd = torch.rsqrt(torch.linalg.vector_norm(h, dim=-1, keepdim=True).square() / h.shape[-1])
    mix = F.silu(rstd * (h @ down.T) + bias)
    mix = F.pad(mix, (0, 1), value=1.0) * scale
    return torch.addmm(h, mix, up_static)


def inputs(case: Case, device: torch.device) -> list[Tensor]:
    dtype = getattr(torch, case.dtype)
    return steer.inputs(case.tokens, case.width, case.rank, dtype, device)


def variants(case: Case, device: torch.device, mode: str) -> dict[str, Callable[[], object]]:
    args = inputs(case, device)
    h, down, bias, up, static, scale = (x.detach() for x in args)
    folded = [h, down, bias, torch.cat([up.T, static[None]]), scale]
    folded = [x.to(h.dtype).requires_grad_() for x in folded]
    upstream = torch.randn_like(h)

    def run(function: Callable[..., Tensor], given: list[Tensor]) -> Callable[[], object]:
        return steer.run(function, given, upstream, mode)

    functions = {
        "dive": run(ops.steer, args),
        "reference": run(reference.steer, args),
        "hand algebra": run(hand_algebra, folded),
    }
    if case is not SMALL:
        functions["reference, compiled"] = run(compiled(reference.steer), args)
        functions["hand algebra, compiled"] = run(compiled(hand_algebra), folded)
    elif device.type == "cpu":
        functions["bare function"] = run(_Bare.apply, args)
        if mode == "forward":
            plain = [h, down, bias, up, static, scale]
            functions["arithmetic"] = lambda: steering_torch.forward(
                *plain, None, "silu", False, 1e-6, True
            )
    return functions


def measure(case: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    torch._dynamo.reset()  # the compiler limits how often it compiles a function
    calls = 50 if case is SMALL and device.type == "cpu" and not TOY else 1
    clock = timing.clock(device)
    seconds: dict[str, Any] = {}
    peak: dict[str, dict[str, int]] = {}
    why: dict[str, str] = {}
    for mode in MODES:
        functions, failed = timing.working(variants(case, device, mode))
        why |= {f"{name} ({mode})": reason for name, reason in failed.items()}
        floor_by, copying = steer.copy(inputs(case, device)[0])
        everything = {"copy": copying, **functions}
        if calls > 1:
            everything = {name: _repeated(one, calls) for name, one in everything.items()}
        taken = timing.interleaved(everything, rounds, device)
        one_call = {
            name: {kind: value / calls for kind, value in times.items()}
            for name, times in taken.items()
        }
        once = one_call.pop("copy")
        floor = {kind: value * PASSES[mode] / 2 for kind, value in once.items()}
        seconds[mode] = {"floor": floor, **one_call}
        for name, function in functions.items():
            peak.setdefault(name, {})[mode] = timing.peak_extra_bytes(function, device)
    times = {mode: {name: one[clock] for name, one in seconds[mode].items()} for mode in MODES}
    stream = case.tokens * case.width * getattr(torch, case.dtype).itemsize
    print(case.name, {k: f"{1e6 * v:.1f} us" for k, v in times["forward+backward"].items()}, why)
    return {
        "case": case.name,
        **{key: value for key, value in case._asdict().items() if key != "name"},
        "bytes": {mode: passes * stream for mode, passes in PASSES.items()},
        "seconds": seconds,
        "floor_by": floor_by,
        "gb_s": {
            mode: {name: PASSES[mode] * stream / one / 1e9 for name, one in times[mode].items()}
            for mode in MODES
        },
        "times_dive": {
            mode: {name: one / times[mode]["dive"] for name, one in times[mode].items()}
            for mode in MODES
        },
        "peak_extra_bytes": peak,
        "not_run": why,
    }


def _repeated(function: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            function()

    return run


@pytest.mark.parametrize("name", ["dive", "bare function", "reference", "hand algebra"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", [SMALL, next(cases("cpu"))], ids=["small", "large"])
def test_steer(benchmark: Any, case: Case, mode: str, name: str) -> None:
    torch.set_num_threads(1)
    functions = variants(case, timing.CPU, mode)
    if name not in functions:
        pytest.skip(f"{name}: only at the small size")
    benchmark.group = f"{case.name}, {mode}"
    assert benchmark(functions[name]) is not None


def test_the_ways_agree() -> None:
    case = Case("small", 6, 64, 4)
    h, down, bias, up, static, scale = inputs(case, timing.CPU)
    want = reference.steer(h, down, bias, up, static, scale)
    got = hand_algebra(h, down, bias, torch.cat([up.T, static[None]]), scale)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(ops.steer(h, down, bias, up, static, scale), want)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default=timing.default_device().type)
    parser.add_argument("--rounds", type=int, default=2 if TOY else 25, help="4 times, small case")
    timing.add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    head = {
        "what": f"steer on a {'CPU, 1 thread' if device.type == 'cpu' else 'GPU'}",
        "rounds": options.rounds,
    }
    results = timing.ResultsFile(
        f"{timing.short_name(device)}-steer",
        head,
        device,
        **timing.options_of(options),
    )
    for case in cases(device.type):
        if results.wanted(case.name):
            rounds = options.rounds * (4 if case is SMALL else 1)
            results.add(measure(case, device, rounds))
    print(results.close())


if __name__ == "__main__":
    main()
