"""Decoding: the session, transformers' generate, and the floor of the same run.

    python -m pytest benchmarks/bench_decode.py --benchmark-only     each briefly, on a CPU
    python -m benchmarks.bench_decode                                results/cpu-decode.json
    python -m benchmarks.bench_decode --pairs                        see benchmarks/decode_pairs.py

On a CPU: random weights, one sequence, a prompt of 64 tokens, greedy. Times are CPU time of one
thread (the machine may be busy) from the first new token to the last, without the prefill.

The floor is the time in which one thread reads as many bytes as a step must (weights and cache), by
the fastest of the ways of dive/bench/rates.py (torch's, and several parallel streams), measured in
the same rounds. As many bytes and as often, so that the caches hold the same share of them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

import dive
from benchmarks import timing
from benchmarks.timing import TOY, interval
from dive.bench.decoders import adapter_for, build, step_bytes
from dive.bench.rates import fastest, read_again, read_buffer, reads
from dive.decode import native
from dive.decode.session import DecodeSession

PROMPT, NEW = (8, 5) if TOY else (64, 33)
CASES = [
    ("512x12", "bfloat16"),
    ("512x12", "float32"),
    ("1536x16", "bfloat16"),
    ("1536x16", "float32"),
]


class Clock:
    """A streamer that records the time of each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        self.times.append(time.thread_time())

    def end(self) -> None:
        pass

    def milliseconds_per_token(self) -> float:
        first, last = self.times[-NEW], self.times[-1]  # a prompt may have been put before
        return (last - first) / (NEW - 1) * 1e3


class Ways:
    """The ways to decode with one model; each call returns milliseconds per token.

    Steered or not, it is the same session: two engines differ by the location of their memory, and
    by more than the cost of steering.
    """

    def __init__(self, shape: str, dtype: str) -> None:
        torch.set_num_threads(1)
        self.model = build(shape, getattr(torch, dtype), timing.CPU, toy=TOY)
        self.adapter = adapter_for(self.model)
        self.ids = torch.randint(5, 100, (1, PROMPT))
        self.decoder = DecodeSession(self.model)
        self.needed = step_bytes(self.model, self.adapter, 1, PROMPT + NEW // 2)
        size = self.needed["weights"] + self.needed["cache"]
        self.memory = read_buffer(timing.CPU, TOY, size)
        ways = reads(self.memory)
        self.read_by = fastest(ways, timing.CPU)
        self.read = ways[self.read_by]
        assert self.decoder.engine_choice().engine == "dive._C", self.decoder.engine_choice()

    def _token(self, generate: Callable[..., Any], steered: bool) -> float:
        clock = Clock()
        given = {"attention_mask": torch.ones_like(self.ids), "do_sample": False}
        with dive.steer(self.model, self.adapter) if steered else nullcontext():
            generate(self.ids, **given, max_new_tokens=NEW, streamer=clock)
        return clock.milliseconds_per_token()

    def session(self) -> float:
        return self._token(self.decoder.generate, steered=False)

    def session_steered(self) -> float:
        return self._token(self.decoder.generate, steered=True)

    def transformers(self) -> float:
        return self._token(self.model.generate, steered=False)

    def transformers_steered(self) -> float:
        return self._token(self.model.generate, steered=True)

    def read_gb(self) -> float:
        reads_of_an_answer = read_again(self.read, NEW - 1)
        start = time.thread_time()
        reads_of_an_answer()
        return (NEW - 1) * self.memory.nbytes / (time.thread_time() - start) / 1e9


WAYS = ("session", "session_steered", "transformers", "transformers_steered")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("shape", "dtype"), CASES[:2])
def test_decode(benchmark: Any, shape: str, dtype: str, way: str) -> None:
    ways = Ways(shape, dtype)
    assert getattr(ways, way)() is not None
    result = benchmark.pedantic(getattr(ways, way), rounds=1 if TOY else 3)
    assert isinstance(result, float)


def measure(shape: str, dtype: str, rounds: int, pairs: int) -> dict[str, Any]:
    ways = Ways(shape, dtype)
    times: dict[str, list[float]] = {name: [] for name in (*WAYS, "read_gb")}
    for turn in range(rounds + 1):
        for name, values in times.items():
            value = getattr(ways, name)()
            if turn:
                values.append(value)
    overhead = []
    for turn in range(pairs):  # in alternating order
        calls = [ways.session, ways.session_steered][:: 1 if turn % 2 else -1]
        first, second = (call() for call in calls)
        off, on = (first, second) if turn % 2 else (second, first)
        overhead.append(100 * (on / off - 1))
    median = {name: statistics.median(values) for name, values in times.items()}
    needed = ways.needed
    floor = (needed["weights"] + needed["cache"]) / median["read_gb"] / 1e6
    return {
        "shape": shape,
        "dtype": dtype,
        "bytes_a_step": needed,
        "read_GB_s": round(median["read_gb"], 1),
        "floor_by": ways.read_by,
        "floor_ms": round(floor, 3),
        "ms_a_token": {name: round(median[name], 3) for name in WAYS},
        "speedup": round(median["transformers"] / median["session"], 2),
        "speedup_steered": round(median["transformers_steered"] / median["session_steered"], 2),
        "share_of_floor": round(floor / median["session"], 3),
        "steering_percent_of_step_median_low_high": interval(overhead),
        "hooks_percent": round(
            100 * (median["transformers_steered"] / median["transformers"] - 1), 1
        ),
        "rounds": rounds,
        "pairs": pairs,
    }


def measure_all() -> None:
    """Writes results/cpu-decode.json."""
    results = []
    for shape, dtype in CASES:
        large = shape == "1536x16"
        rounds, pairs = (1, 3) if TOY else (9, 24) if large else (15, 60)
        row = measure(shape, dtype, rounds, pairs)
        results.append(row)
        print(json.dumps(row), flush=True)
    result = {
        "what": "ms per token, medians of interleaved rounds, CPU time of one thread",
        "dive": native.build_info(),
        "results": results,
    }
    print(timing.write("cpu-decode", result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default=timing.default_device().type)
    parser.add_argument("--pairs", action="store_true", help="as on a GPU: every way in pairs")
    timing.add_options(parser)
    options = parser.parse_args()
    if options.device == "cpu" and not options.pairs:
        measure_all()
        return
    from benchmarks import decode_pairs

    device = torch.device(options.device)
    decode_pairs.run(device, **timing.options_of(options))


if __name__ == "__main__":
    main()
