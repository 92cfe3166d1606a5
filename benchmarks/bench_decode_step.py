"""What steering costs in one decode step: the fused kernel, without steering, and PyTorch.

    python -m pytest benchmarks/bench_decode_step.py --benchmark-only     a look at each
    python benchmarks/bench_decode_step.py [OUT.json]                     interleaved medians

One call is [residual add + steering + RMSNorm] of `rows` sequences at one layer. `hot` runs over
one layer's weights, which then lie in the cache; `cold` goes through as many layers as fill 96 MB,
as between two visits of a layer a decode step reads the whole model. The kernel is called by
itself, in a build of dive._C for tests (tests/helpers/step_kernel.py). Times are those of the
thread's own CPU clock, since the machine may be busy, and one thread is used.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from dive import reference
from tests.helpers import step_kernel

RANK = 16
WIDTHS = (512, 1024, 1536, 2048, 4096)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLD_BYTES = 96 << 20
TOY = os.environ.get("DIVE_BENCH_TOY") == "1"


class Step:
    """The four ways over the same numbers; each method is one call."""

    def __init__(self, width: int, dtype: torch.dtype, rows: int = 1, cold: bool = False) -> None:
        torch.manual_seed(0)
        self.residual = torch.randn(rows, width).to(dtype)
        # small, so that a million steps on the same buffer stay finite
        self.delta = (1e-3 * torch.randn(rows, width)).to(dtype)
        self.out, self.weight = torch.empty_like(self.residual), torch.ones(width, dtype=dtype)
        one_layer = 2 * RANK * width * dtype.itemsize + 4 * width
        count = max(2, COLD_BYTES // one_layer) if cold and not TOY else 1
        down, up = torch.randn(RANK, width) / width**0.5, torch.randn(width, RANK)
        bias, static = torch.randn(RANK), torch.randn(width)
        parts = down.to(dtype), bias, up.to(dtype), static, 1e-3
        self.packed = [[step_kernel.pack(*parts)] * rows for _ in range(count)]
        self.unsteered = [None] * rows
        self.step = step_kernel.module().steer_step
        # as hooks would hold them: every weight in the stream's dtype
        self.plain = [[p.to(dtype).clone() for p in parts[:4]] for _ in range(count)]
        self.turn = 0

    def _next(self, items):
        self.turn = (self.turn + 1) % len(items)
        return items[self.turn]

    def fused(self):
        steering = self._next(self.packed)
        self.step(self.residual, self.delta, steering, self.weight, self.out, 1e-6, False)

    def without_steering(self):
        self._next(self.packed)
        self.step(self.residual, self.delta, self.unsteered, self.weight, self.out, 1e-6, False)

    def pytorch(self):
        """The least PyTorch calls that do it; looser in its roundings than the reference."""
        down, bias, up, static = self._next(self.plain)
        h = self.residual.add_(self.delta)
        u = F.rms_norm(h, h.shape[-1:], eps=1e-6)
        h.add_(F.linear(F.silu(F.linear(u, down, bias)), up, static), alpha=1e-3)
        return F.rms_norm(h, h.shape[-1:], self.weight, 1e-6)

    def pytorch_without_steering(self):
        h = self.residual.add_(self.delta)
        return F.rms_norm(h, h.shape[-1:], self.weight, 1e-6)


WAYS = ("fused", "without_steering", "pytorch", "pytorch_without_steering")


@pytest.mark.parametrize("width", (64,) if TOY else WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_decode_step(benchmark, way, dtype, width):
    torch.set_num_threads(1)
    step = Step(width, DTYPES[dtype])
    with torch.inference_mode():
        benchmark(getattr(step, way))
    assert step.residual.isfinite().all()


def test_the_ways_agree():
    torch.set_num_threads(1)
    a, b = (Step(512, torch.float32) for _ in range(2))
    down, bias, up, static = a.plain[0]
    want = reference.steer(a.residual + a.delta, down, bias, up, static, torch.tensor(1e-3))
    a.fused()
    out = b.pytorch()
    torch.testing.assert_close(a.residual, want)
    torch.testing.assert_close(b.residual, want)
    torch.testing.assert_close(a.out, out)


def microseconds(call, repeat: int) -> float:
    start = time.thread_time_ns()
    for _ in range(repeat):
        call()
    return (time.thread_time_ns() - start) / repeat / 1000


def measure(step: Step, rounds: int) -> dict[str, float]:
    """Median over rounds of each way's microseconds a call; a round runs all of them."""
    calls = {way: getattr(step, way) for way in WAYS}
    repeat = max(20, min(2000, int(3000 / microseconds(calls["pytorch"], 20))))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, call in calls.items():
            times[way].append(microseconds(call, repeat))
    return {way: round(statistics.median(values), 3) for way, values in times.items()}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def main(out: Path) -> None:
    torch.set_num_threads(1)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = []
    with torch.inference_mode():
        for dtype in DTYPES:
            for width in WIDTHS:
                for batch, cold in ((1, False), (1, True), (8, False)):
                    step = Step(width, DTYPES[dtype], batch, cold)
                    times = measure(step, rounds=31)
                    row = {"dtype": dtype, "width": width, "rank": RANK, "rows": batch}
                    row |= {"weights": "cold" if cold else "hot", "microseconds": times}
                    row["steering_us"] = round(times["fused"] - times["without_steering"], 3)
                    row["pytorch_over_fused"] = round(times["pytorch"] / times["fused"], 2)
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    info = step_kernel.module().build_info()
    result = {
        "what": "us per call, median of 31 interleaved rounds, CPU time of one thread",
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "load": os.getloadavg()},
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "dive": info},
        "commit": commit,
        "results": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    default = Path(__file__).parent / "results" / "cpu-steer-step.json"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
