"""Decoding: every way against the session, in interleaved pairs, also with batches and adapters.

A way is a function of the number of new tokens. The time per token is that of a call with NEW
tokens, less the median of calls with one (the prefill), over NEW - 1; ratios are of consecutive
calls, in alternating order, with a 95% interval. The engine that the session chose is recorded with
each. The floor is the bytes that a step must read over the best rate at which this device reads
memory in the same run, by the ways of dive/bench/rates.py: 4 GiB on a GPU, on a CPU as many bytes
as a step of one sequence, so that the caches hold the same share of them.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from transformers import StaticCache

import dive
from benchmarks import timing
from benchmarks.compiled_loop import CompiledLoop
from benchmarks.timing import TOY
from dive.bench.decoders import adapter_for, build, step_bytes
from dive.bench.rates import read_buffer, reads
from dive.decode.session import DecodeSession

# device type -> tokens in the prompt
CONTEXT = {"cuda": 1024, "cpu": 12 if TOY else 64}
# seconds of the pairs of a case, of which there are at least 4 (3 at toy size), and their largest
# share of all the time
SECONDS_PER_WAY = {"cuda": 1 if TOY else 90, "cpu": 1 if TOY else 40}
SHARE = 1 / 6

Way = Callable[[int], Any]


class Case(NamedTuple):
    shape: str
    dtype: str
    batch: int
    way: str
    beside: str  # the way that it is paired with
    pairs: int

    @property
    def name(self) -> str:
        kind = "" if self.dtype == "bfloat16" else f" {self.dtype}"
        return f"{self.shape}{kind}, batch {self.batch}: {self.way}"


def cases(device: str) -> Iterator[Case]:
    """Yields 8B first, and for each shape the session at all batches before its peers.

    Compiled ways come last: they take a minute to compile, attaching an adapter resets the
    compiler, and they are left out when time is short.
    """
    shapes = [("Llama-3-8B", "bfloat16"), ("Qwen2.5-7B", "bfloat16"), ("Gemma-3-4B", "bfloat16")]
    batches: tuple[int, ...] = (1, 2) if TOY else (1, 32, 8)
    if device == "cpu" and not TOY:
        shapes = [("512x12", "bfloat16"), ("512x12", "float32")]
        batches = (4, 32)  # batch 1 is in cpu-decode.json
    for shape, dtype in shapes:
        of_shape = [ways(shape, dtype, batch, max(batches)) for batch in batches]
        if device == "cpu" and not TOY:
            of_shape[-1] = of_shape[-1][:3]  # the session alone
        ordered = [case for kind in KINDS for one in of_shape for case in one if case.way in kind]
        if TOY and shape != "Llama-3-8B":  # the ways in which a family may differ
            ordered = ordered[:1] + (ordered[-1:] if shape == "Gemma-3-4B" else [])
        yield from ordered


# in the order in which they are measured
KINDS = (
    ("session, steered",),
    ("transformers, steered by hooks", "transformers"),
    ("session, 4 adapters", "session, an adapter each"),
    ("transformers, static + compile", "compiled loop"),
)


def ways(shape: str, dtype: str, batch: int, most: int) -> list[Case]:
    """Returns the pairs of one batch; `most` is the largest batch."""
    size = shape, dtype, batch
    found = [Case(*size, "session, steered", "session", 24)]
    if batch > 1:
        found.append(Case(*size, "session, 4 adapters", "session, steered", 24))
    if batch == most:
        found.append(Case(*size, "session, an adapter each", "session, steered", 24))
    return [
        *found,
        Case(*size, "transformers, steered by hooks", "session, steered", 4),
        Case(*size, "transformers", "session", 4),
        Case(*size, "transformers, static + compile", "session", 12),
        Case(*size, "compiled loop", "session", 12),
    ]


class Bench:
    """One model on one device, and the ways to decode with it."""

    def __init__(self, shape: str, dtype: str, device: torch.device) -> None:
        self.key, self.device, self.context = (shape, dtype), device, CONTEXT[device.type]
        self.model = build(
            shape, getattr(torch, dtype), device, context=self.context + 512, toy=TOY
        )
        self.adapters = [adapter_for(self.model, seed) for seed in range(2 if TOY else 32)]
        needed = step_bytes(self.model, self.adapters[0], 1, self.context)
        size = 0 if device.type == "cuda" else needed["weights"] + needed["cache"]
        self.rates = read_rates(device, size)
        self.choices: dict[str, Any] = {}
        self.seconds: float = SECONDS_PER_WAY[device.type]

    def way(self, name: str, batch: int, new: int) -> Way:
        """Returns a way to decode; raises if it cannot be used."""
        torch.manual_seed(batch)
        vocabulary = self.model.config.vocab_size
        ids = torch.randint(5, vocabulary, (batch, self.context), device=self.device)
        given = {"attention_mask": torch.ones_like(ids), "do_sample": False}
        if name == "compiled loop":
            loop = CompiledLoop(self.model, batch, self.context + new)
            return lambda count: loop.generate(ids, count)
        if name == "transformers, static + compile":
            cache = StaticCache(self.model.config, max_cache_len=self.context + new)

            def static(count: int) -> Any:
                cache.reset()
                more = {"past_key_values": cache, "max_new_tokens": count}
                return self.model.generate(ids, **given, **more)

            return static
        if name.startswith("transformers"):
            steered = name.endswith("hooks")

            def eager(count: int) -> Any:
                with dive.steer(self.model, self.adapters[0]) if steered else nullcontext():
                    return self.model.generate(ids, **given, max_new_tokens=count)

            return eager
        adapter: Any = None
        if name == "session, steered":
            adapter = self.adapters[0]
        elif name != "session":
            count = min(4 if name == "session, 4 adapters" else batch, len(self.adapters))
            adapter = [self.adapters[index % count] for index in range(batch)]
        session = DecodeSession(self.model, adapter)
        engine, reason, requested = session.engine_choice()
        # the keys of recorded results
        self.choices[name] = {"engine": engine, "reason": reason, "asked": requested}
        return lambda count: session.generate(ids, **given, max_new_tokens=count)


def read_rates(device: torch.device, size: int) -> dict[str, float]:
    """Returns GB/s of several ways to read `size` bytes (0: a suitable size for the device)."""
    memory = read_buffer(device, TOY, size)
    times = timing.interleaved(reads(memory), 2 if TOY else 11, device)
    clock = timing.clock(device)
    return {name: memory.nbytes / one[clock] / 1e9 for name, one in times.items()}


def measure(bench: Bench, case: Case) -> dict[str, Any]:
    new = 4 if TOY else 64
    if case.way == "session, steered" and not TOY:  # the prefill must count for little
        new = {1: 256, 8: 128}.get(case.batch, 64)
    found: dict[str, Any] = {
        "case": case.name,
        **case._asdict(),
        "context": bench.context,
        "new_tokens": new,
    }
    needed = step_bytes(bench.model, bench.adapters[0], case.batch, bench.context + new // 2)
    by, rate = max(bench.rates.items(), key=lambda item: item[1])
    floor = (needed["weights"] + needed["cache"]) / rate / 1e6
    found |= {"bytes_a_step": needed, "read_GB_s": bench.rates, "floor_ms": floor, "floor_by": by}
    bench.choices = {}
    try:
        ways = [bench.way(name, case.batch, new) for name in (case.beside, case.way)]
        beside, own, ratios = pairs(ways, bench, case.pairs, new)
    except Exception as error:
        text = " ".join(str(error).split())
        found["not_run"] = f"{type(error).__name__}: {text}"[:400]
        print(case.name, found["not_run"], flush=True)
        return found
    found |= {
        "plan": bench.choices,
        "ms_a_token": {case.beside: beside, case.way: own},
        "share_of_floor": {case.beside: floor / beside, case.way: floor / own},
        "times_beside": timing.interval(ratios),
        "measured_pairs": len(ratios),
    }
    print(case.name, found["ms_a_token"], found["times_beside"], bench.choices, flush=True)
    return found


def pairs(ways: list[Way], bench: Bench, wanted: int, new: int) -> tuple[float, float, list[float]]:
    """Returns the median ms per token of both, and the ratio of each pair, second over first."""

    on_gpu = bench.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.thread_time

    def seconds(way: Way, count: int) -> float:
        if on_gpu:
            torch.cuda.synchronize()
        start = clock()
        tokens = way(count)
        if on_gpu:
            torch.cuda.synchronize()
        taken = clock() - start
        came = tokens.shape[1] - bench.context
        if came != count:
            raise RuntimeError(f"{came} tokens came, want {count}")
        return taken

    prompt = []
    for way in ways:
        seconds(way, new)  # compiles
        again = 3 if TOY else min(15, max(3, int(3 / seconds(way, 1))))
        prompt.append(statistics.median(seconds(way, 1) for _ in range(again)))
    once = sum(seconds(way, new) for way in ways)
    count = min(wanted, max(3 if TOY else 4, int(bench.seconds / once)))
    taken: list[list[float]] = [[], []]
    for turn in range(count):
        for index in (0, 1) if turn % 2 else (1, 0):
            step = (seconds(ways[index], new) - prompt[index]) / (new - 1)
            taken[index].append(1e3 * step)
    ratios = [own / beside for beside, own in zip(*taken, strict=True)]
    return statistics.median(taken[0]), statistics.median(taken[1]), ratios


def run(device: torch.device, **options: Any) -> None:
    """Writes <device>-decode-pairs.json, way by way; options of `timing.ResultsFile`."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    clock = "" if device.type == "cuda" else ", CPU time of one thread"
    head = {"what": f"ms per token, greedy, medians of interleaved pairs{clock}"}
    name = f"{timing.short_name(device)}-decode-pairs"
    results = timing.ResultsFile(name, head, device, **options)
    bench: Bench | None = None
    for case in cases(device.type):
        if not results.wanted(case.name):
            continue
        if bench is None or bench.key != (case.shape, case.dtype):
            bench = None
            _free()
            bench = Bench(case.shape, case.dtype, device)
            if options.get("minutes") is not None:
                bench.seconds = min(bench.seconds, SHARE * 60 * options["minutes"])
        results.add(measure(bench, case))
        _free()
    print(results.close())


def _free() -> None:
    """Frees the caches and graphs of the last way."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
