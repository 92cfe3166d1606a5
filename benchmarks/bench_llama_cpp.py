"""Decoding against llama.cpp: the same weights, prompts and threads, in turns in one process.

    pip install --no-binary llama-cpp-python llama-cpp-python gguf    compiles it for this machine
    python -m benchmarks.bench_llama_cpp --again --minutes 13         results/cpu-llama-cpp.json
    python -m benchmarks.render_page                                  the pages

Greedy, a prompt of 64 tokens, random weights. The time per token is that from the first new token
to the last, divided by the tokens between, without the prefill: CPU time of all threads of this
process, and wall-clock time. In each turn both answer one after the other, in alternating order;
the ratio is of these two, with a 95% interval of its median. Before anything is timed, llama.cpp's
logits for the session's answer are compared with the model's own forward: in float32 both compute
the same up to the order of sums, in bfloat16 they round at different points. The most likely token
may then differ, and so does the rest of the answer; `same_tokens` is the share that agreed.

The floor is as in bench_decode.py. `load` shows a busy machine; run this on a quiet one.
"""

import argparse
import gc
import statistics
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import llama_cpp, timing
from benchmarks.timing import TOY
from dive.bench.case import TOLERANCES, off
from dive.bench.decoders import adapter_for, build, step_bytes
from dive.bench.peers import Unavailable
from dive.bench.rates import fastest, read_again, read_buffer, reads
from dive.bench.timing import cpu_seconds, turns
from dive.decode.session import DecodeSession

PROMPT = 8 if TOY else 64
PEER = "llama.cpp"
CLOCKS = ("wall", "cpu")


class Case(NamedTuple):
    shape: str
    dtype: str
    batch: int
    new: int  # tokens of an answer
    turns: int
    seconds: float  # no turn is begun after that time, once there are 3

    @property
    def name(self) -> str:
        return f"{self.shape}, {self.dtype}, batch {self.batch}"


def cases() -> list[Case]:
    """Yields the cases, batch 1 first."""
    if TOY:
        return [Case("512x12", "float32", 2, 4, 2, 1.0)]
    sizes = {"512x12": (65, 40, 40.0), "1536x16": (17, 24, 75.0)}
    return [
        Case(shape, dtype, batch, *size)
        for batch in (1, 4)
        for shape, size in sizes.items()
        for dtype in ("bfloat16", "float32")
    ]


class Clock:
    """A streamer that records wall-clock and CPU time of each token."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def put(self, _: Any = None) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def end(self) -> None:
        pass

    def seconds_per_token(self, new: int) -> tuple[float, float]:
        first, last = self.times[-new], self.times[-1]  # a prompt may have been put before
        return tuple((b - a) / (new - 1) for a, b in zip(first, last, strict=True))  # type: ignore[return-value]


class Bench:
    """One model, decoded by the session and by llama.cpp."""

    def __init__(self, case: Case, folder: Path, threads: int) -> None:
        self.case = case
        dtype = getattr(torch, case.dtype)
        tokens = PROMPT + case.new
        self.model = build(case.shape, dtype, timing.CPU, context=tokens + 64, toy=TOY)
        torch.manual_seed(case.batch)
        self.ids = torch.randint(5, self.model.config.vocab_size, (case.batch, PROMPT))
        self.session = DecodeSession(self.model)
        choice = self.session.engine_choice()
        if choice.engine != "dive._C":
            raise Unavailable(f"the session runs in {choice.engine}: {choice.reason}")
        self.peer = llama_cpp.LlamaCpp(self.model, folder / case.shape, threads, case.batch, tokens)
        needed = step_bytes(self.model, adapter_for(self.model), case.batch, PROMPT + case.new // 2)
        self.needed = needed["weights"] + needed["cache"]
        self.memory = read_buffer(timing.CPU, TOY, self.needed)
        ways = reads(self.memory)
        self.read_by = fastest(ways, timing.CPU)
        self.read = ways[self.read_by]

    def answer(self, way: str, clock: Clock) -> Tensor:
        """Returns prompt and answer [B, T + new]."""
        if way == PEER:
            return self.peer.generate(self.ids, self.case.new, clock.put)
        given = {"attention_mask": torch.ones_like(self.ids), "do_sample": False}
        return self.session.generate(
            self.ids, **given, max_new_tokens=self.case.new, streamer=clock
        )

    def seconds(self, way: str) -> tuple[float, float]:
        clock = Clock()
        self.answer(way, clock)
        return clock.seconds_per_token(self.case.new)

    def floor(self) -> tuple[float, float]:
        wall, cpu = cpu_seconds(read_again(self.read, self.case.new - 1))
        share = self.needed / self.memory.nbytes / (self.case.new - 1)
        return share * wall, share * cpu

    @torch.inference_mode()
    def check(self) -> dict[str, float]:
        """Returns how far llama.cpp's logits are off, and the share of equal tokens.

        For the session's answer to the first prompt, against one forward of the model over all of
        it. RuntimeError if they are too far off.
        """
        own, other = (self.answer(way, Clock()) for way in ("session", PEER))
        came = own[:1, :-1]
        want = self.model(came, logits_to_keep=self.case.new).logits[0].float()
        distance = off(self.peer.logits(came[0])[-self.case.new :], want)
        most = TOLERANCES[self.model.dtype]
        if not distance <= most:
            raise RuntimeError(
                f"llama.cpp's logits are {distance:.2%} off those of the model's own forward, want "
                f"{most:.1%} at most: it would be timed on other work"
            )
        same = (own == other)[:, PROMPT:].float().mean().item()
        return {"logits_off": round(distance, 7), "same_tokens": round(same, 3)}


def measure(case: Case, folder: Path, threads: int) -> dict[str, Any]:
    found: dict[str, Any] = {"case": case.name, **case._asdict(), "prompt": PROMPT}
    found["threads"] = threads
    bench = None
    try:
        (folder / case.shape).mkdir(exist_ok=True)
        bench = Bench(case, folder, threads)
        found |= bench.check()
        ways = {way: partial(bench.seconds, way) for way in ("session", PEER)}
        until = time.monotonic() + case.seconds
        taken = turns({"floor": bench.floor, **ways}, case.turns, until=until)
    except (Unavailable, RuntimeError) as error:
        found["not_run"] = " ".join(str(error).split())[:400]
        print(case.name, found["not_run"], flush=True)
        return found
    finally:
        if bench is not None:
            bench.peer.close()
    at = {clock: index for index, clock in enumerate(CLOCKS)}
    found["ms_a_token"] = {
        way: {clock: round(1e3 * statistics.median(one[at[clock]] for one in values), 4)
              for clock in CLOCKS}
        for way, values in taken.items()
    }  # fmt: skip
    pairs = list(zip(taken["session"], taken[PEER], strict=True))
    found["times_llama_cpp"] = {
        clock: timing.interval([own[at[clock]] / other[at[clock]] for own, other in pairs])
        for clock in CLOCKS
    }
    floor = found["ms_a_token"]["floor"]["cpu"]
    found["share_of_floor"] = {
        way: round(floor / found["ms_a_token"][way]["cpu"], 4) for way in ("session", PEER)
    }
    found |= {"bytes_a_step": bench.needed, "floor_by": bench.read_by, "measured_pairs": len(pairs)}
    print(case.name, found["ms_a_token"], found["times_llama_cpp"], flush=True)
    return found


def run(threads: int, *, again: bool, minutes: float | None) -> Path:
    """Writes results/cpu-llama-cpp.json, case by case."""
    torch.set_num_threads(threads)
    many = "1 thread" if threads == 1 else f"{threads} threads"
    head: dict[str, Any] = {
        "what": f"ms per token, greedy, medians of turns, CPU time of {many}; bench_llama_cpp.py"
    }
    with suppress(Unavailable):  # which every case records
        head |= {"llama_cpp": llama_cpp.described()}
    name = "cpu-llama-cpp" + ("" if threads == 1 else f"-{threads}-threads")
    results = timing.ResultsFile(name, head, again=again, minutes=minutes)
    with tempfile.TemporaryDirectory(prefix="dive-bench-gguf-") as folder:
        for case in cases():
            if results.wanted(case.name):
                results.add(measure(case, Path(folder), threads))
                gc.collect()
    return results.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of both")
    parser.add_argument("--minutes", type=float, help="begin no case after that many")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    options = parser.parse_args()
    print(run(options.threads, again=options.again, minutes=options.minutes))


if __name__ == "__main__":
    main()
