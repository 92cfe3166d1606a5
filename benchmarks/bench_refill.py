"""Reports of mixed lengths: continuous batching against batches that wait for their longest.

    python -m benchmarks.bench_refill                                results/cpu-refill.json

Random weights, 32 prompts of 64 tokens, answers of 10 to 160 tokens, 8 at once, greedy, one thread.
"in groups" is the session on 8 prompts at a time: the same code, but no slot is refilled.
transformers pads a batch to its longest prompt, and generates no more than its longest answer.
Times are CPU time of the process, prefill included; the ways run in turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import timing
from benchmarks.timing import TOY
from dive.bench.decoders import build
from dive.decode.continuous import Request
from dive.decode.engine import EngineCache
from dive.decode.session import DecodeSession

PROMPT, NEW, REQUESTS, SLOTS = (8, 6, 4, 2) if TOY else (64, 160, 32, 8)


class Ways:
    def __init__(self, shape: str, dtype: str) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(1)
        self.model = build(shape, getattr(torch, dtype), timing.CPU, toy=TOY)
        self.session = DecodeSession(self.model)
        assert self.session.engine_choice().engine == "dive._C", self.session.engine_choice()
        generator = torch.Generator().manual_seed(1)
        self.prompts = torch.randint(5, 100, (REQUESTS, PROMPT), generator=generator)
        lengths = torch.randint(NEW // 16, NEW + 1, (REQUESTS,), generator=generator)
        self.lengths: list[int] = lengths.tolist()

    def _requests(self) -> list[Request]:
        return [
            Request({"input_ids": ids[None]}, {"max_new_tokens": length, "do_sample": False})
            for ids, length in zip(self.prompts, self.lengths, strict=True)
        ]

    def refilled(self, slots: int = SLOTS) -> list[list[int]]:
        return [one.token_ids for one in sorted(self.session.stream(self._requests(), slots))]

    def one_by_one(self) -> list[list[int]]:
        return self.refilled(slots=1)

    def in_groups(self) -> list[list[int]]:
        answers, requests = [], self._requests()
        for at in range(0, REQUESTS, SLOTS):
            stream = self.session.stream(requests[at : at + SLOTS], SLOTS)
            answers += [one.token_ids for one in sorted(stream)]
        return answers

    def transformers(self) -> list[list[int]]:
        answers = []
        for at in range(0, REQUESTS, SLOTS):
            ids, lengths = self.prompts[at : at + SLOTS], self.lengths[at : at + SLOTS]
            mask = torch.ones_like(ids)
            got = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=max(lengths), do_sample=False
            )
            answers += [
                row[:length] for row, length in zip(got[:, PROMPT:].tolist(), lengths, strict=True)
            ]
        return answers


WAYS = ("refilled", "in_groups", "one_by_one", "transformers")


def slots_per_step(way: Callable[[], Any]) -> float:
    counts: list[int] = []
    step = EngineCache.step

    def counted(self: EngineCache, slots: Any, *more: Any) -> Any:
        counts.append(len(slots))
        return step(self, slots, *more)

    EngineCache.step = counted  # type: ignore[method-assign]
    try:
        way()
    finally:
        EngineCache.step = step  # type: ignore[method-assign]
    return round(statistics.mean(counts), 2)


def measure(shape: str, dtype: str, rounds: int) -> dict[str, Any]:
    ways = Ways(shape, dtype)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    answers = {}
    for _ in range(rounds):
        for name in WAYS:
            started = time.process_time()
            answers[name] = getattr(ways, name)()
            seconds[name].append(time.process_time() - started)
    tokens = sum(ways.lengths)
    return {
        "shape": shape,
        "dtype": dtype,
        "requests": REQUESTS,
        "rows": SLOTS,
        "tokens": tokens,
        "same tokens as refilled": {
            name: sum(a == b for a, b in zip(answers[name], answers["refilled"], strict=True))
            for name in WAYS
        },
        "rows a step": {name: slots_per_step(getattr(ways, name)) for name in WAYS[:2]},
        "tokens a second": {
            name: round(tokens / statistics.median(took), 1) for name, took in seconds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    slots = [measure("512x12", dtype, options.rounds) for dtype in ("float32", "bfloat16")]
    path = timing.write("cpu-refill", {"cases": slots})
    print(json.dumps(slots, indent=2), path)


if __name__ == "__main__":
    main()
