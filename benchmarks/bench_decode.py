"""Decoding on a CPU: the session, transformers' generate, and the floor of the same run.

    python -m pytest benchmarks/bench_decode.py --benchmark-only     a look at each
    python benchmarks/bench_decode.py [OUT.json]                     interleaved medians

Random weights, one sequence, a prompt of 64 tokens, greedy. Times are the thread's own CPU clock
(the machine may be busy), one thread. A call decodes NEW tokens and, once more, one token; the
difference over NEW - 1 is a token's time, so that the prompt counts for nothing.

The floor is the bytes a step must read (weights, cache, adapter) over the rate at which one thread
reads 1 GB (torch.sum), measured in the same rounds. A share above 1 says that the step reads at
least as fast as that. A model that fits the last-level cache claims no share: look at that size.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from timing import machine
from transformers import LlamaConfig, LlamaForCausalLM

import dive
from dive import extension
from dive.decode import DecodeSession

PROMPT, NEW = 64, 33
SHAPES = {
    "512x12": {"width": 512, "layers": 12, "heads": 8, "kv": 4, "inner": 1536, "vocab": 8192},
    "1536x16": {"width": 1536, "layers": 16, "heads": 12, "kv": 4, "inner": 4096, "vocab": 32000},
    "toy": {"width": 64, "layers": 2, "heads": 4, "kv": 2, "inner": 96, "vocab": 128},
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
CASES = [("512x12", "bfloat16"), ("512x12", "float32"), ("1536x16", "bfloat16")]
TOY = os.environ.get("DIVE_BENCH_TOY") == "1"


def build(shape: str, dtype: str) -> LlamaForCausalLM:
    s = SHAPES["toy" if TOY else shape]
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPES[dtype])
    try:
        config = LlamaConfig(
            vocab_size=s["vocab"],
            hidden_size=s["width"],
            intermediate_size=s["inner"],
            num_hidden_layers=s["layers"],
            num_attention_heads=s["heads"],
            num_key_value_heads=s["kv"],
            max_position_embeddings=2048,
            pad_token_id=0,
            eos_token_id=None,
        )
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def adapter_for(model: LlamaForCausalLM) -> dive.SteeringAdapter:
    torch.manual_seed(1)
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=16), model)
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.up.normal_()
            layer.static.normal_()
            layer.scale.fill_(1e-3)
    return adapter


class Ways:
    """The ways to decode with one model; each call returns a token's milliseconds."""

    def __init__(self, shape: str, dtype: str, read_bytes: int = 1 << 30) -> None:
        torch.set_num_threads(1)
        self.model = build(shape, dtype)
        self.adapter = adapter_for(self.model)
        self.ids = torch.randint(5, 100, (1, PROMPT))
        self.off = DecodeSession(self.model)
        self.on = DecodeSession(self.model, self.adapter)
        self.read_bytes = read_bytes
        self.memory = torch.ones(read_bytes // 4)
        assert self.off.plan().engine == self.on.plan().engine == "dive._C"

    def _token(self, session: DecodeSession | None, steered: bool = False) -> float:
        inputs = {"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids)}
        attached = dive.steer(self.model, self.adapter) if steered else nullcontext()
        times = []
        with attached:
            for new in (1, NEW):
                start = time.thread_time()
                self.model.generate(
                    **inputs, max_new_tokens=new, do_sample=False, custom_generate=session
                )
                times.append(time.thread_time() - start)
        return (times[1] - times[0]) / (NEW - 1) * 1e3

    def session(self) -> float:
        return self._token(self.off)

    def session_steered(self) -> float:
        return self._token(self.on)

    def transformers(self) -> float:
        return self._token(None)

    def transformers_steered(self) -> float:
        return self._token(None, steered=True)

    def steps(self, steering: list[Any] | None, count: int = NEW - 1) -> float:
        """The engine alone, from the same length of cache. Steered or not it is the same engine:
        two of them differ by where their memory happens to lie, and by more than steering costs."""
        engine, row = self.on._engine, torch.zeros(1, dtype=torch.long)
        engine.reserve(1, PROMPT + count)
        engine.start_row(0, PROMPT, PROMPT)
        engine.steer_row(0, steering)
        token = torch.full((1,), 7)
        start = time.thread_time()
        for _ in range(count):
            engine.step(token, row, token)
        return (time.thread_time() - start) / count * 1e3

    def engine(self) -> float:
        return self.steps(None)

    def engine_steered(self) -> float:
        return self.steps(self.on._steering(self.adapter))

    def read_gb(self) -> float:
        start = time.thread_time()
        self.memory.sum()
        return self.read_bytes / (time.thread_time() - start) / 1e9

    def step_bytes(self) -> dict[str, int]:
        """What a step must read, at the middle of the tokens that are timed."""
        spec = self.off._spec
        assert spec is not None
        weights = {id(w): w for w in spec.weights()}
        if not spec.tied_head:  # one row of it is read
            weights.pop(id(spec.text.embed_tokens.weight))
        row = spec.kv_heads * spec.head_width * spec.dtype.itemsize
        packed = [one for one in self.on._steering(self.adapter) or [] if one is not None]
        return {
            "weights": sum(w.numel() * w.element_size() for w in weights.values()),
            "cache": 2 * len(spec.layers) * row * (PROMPT + NEW // 2),
            "adapter": sum(one.nbytes for one in packed),
        }


WAYS = ("session", "session_steered", "transformers", "transformers_steered")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("shape", "dtype"), CASES[:2])
def test_decode(benchmark: Any, shape: str, dtype: str, way: str) -> None:
    ways = Ways(shape, dtype, 1 << 20)
    assert getattr(ways, way)() is not None
    result = benchmark.pedantic(getattr(ways, way), rounds=1 if TOY else 3)
    assert isinstance(result, float)


def interval(values: list[float]) -> list[float]:
    """Median and a 95% interval of it, by order statistics."""
    ordered, n = sorted(values), len(values)
    half = 0.98 * n**0.5
    low, high = max(0, int(n / 2 - half)), min(n - 1, int(n / 2 + half))
    return [round(x, 4) for x in (statistics.median(ordered), ordered[low], ordered[high])]


def measure(shape: str, dtype: str, rounds: int, pairs: int) -> dict[str, Any]:
    ways = Ways(shape, dtype)
    times: dict[str, list[float]] = {name: [] for name in (*WAYS, "read_gb")}
    for turn in range(rounds + 1):
        for name, values in times.items():
            value = getattr(ways, name)()
            if turn:
                values.append(value)
    overhead, engine = [], []
    for turn in range(pairs):  # each pair in the other order than the one before
        calls: list[Callable[[], float]] = [ways.engine, ways.engine_steered]
        first, second = (call() for call in calls[:: 1 if turn % 2 else -1])
        off, on = (first, second) if turn % 2 else (second, first)
        overhead.append(100 * (on / off - 1))
        engine.append(off)
    median = {name: statistics.median(values) for name, values in times.items()}
    needed = ways.step_bytes()
    floor = (needed["weights"] + needed["cache"]) / median["read_gb"] / 1e6
    return {
        "shape": shape,
        "dtype": dtype,
        "bytes_a_step": needed,
        "read_GB_s": round(median["read_gb"], 1),
        "floor_ms": round(floor, 3),
        "ms_a_token": {name: round(median[name], 3) for name in WAYS},
        "engine_ms_a_step": round(statistics.median(engine), 3),
        "speedup": round(median["transformers"] / median["session"], 2),
        "speedup_steered": round(median["transformers_steered"] / median["session_steered"], 2),
        "share_of_floor": round(floor / median["session"], 3),
        "engine_share_of_floor": round(floor / statistics.median(engine), 3),
        "steering_percent_of_step_median_low_high": interval(overhead),
        "hooks_percent": round(
            100 * (median["transformers_steered"] / median["transformers"] - 1), 1
        ),
        "rounds": rounds,
        "pairs": pairs,
    }


def main(out: Path) -> None:
    results = []
    for shape, dtype in CASES:
        large = shape == "1536x16"
        row = measure(shape, dtype, rounds=9 if large else 15, pairs=24 if large else 60)
        results.append(row)
        print(json.dumps(row), flush=True)
    result = {
        **machine(),
        "what": "ms a token, medians of interleaved rounds, CPU time of one thread",
        "dive": extension.build_info(),
        "results": results,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    default = Path(__file__).parent / "results" / "cpu-decode.json"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
