"""Steered requests in vLLM: five adapters beside one, one beside none, in the same run.

    python -m benchmarks.bench_vllm                                  results/cpu-vllm.json

In the environment of `make test-vllm`. Random weights; 64 requests at once with prompts of 32 to 96
tokens and answers of 16 to 48, 128 in all: one that ends is followed by the next. A round is a turn
of each way, in an order that changes; the requests are the same in each turn. `none`, `one` and
`five` adapters are requests to one engine; `stock` is vLLM's class of the model, without dive and
without LoRA, in an engine beside it. Latency is from the arrival of a request at the engine to its
last token.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import timing
from benchmarks.timing import TOY
from dive.adapter import SteeringAdapter, SteeringConfig
from dive.vllm.exported import export, server_arguments
from dive.vllm.plugin import register

ADAPTERS, AT_ONCE, REQUESTS = (2, 4, 8) if TOY else (5, 64, 128)
PROMPTS, ANSWERS = ((4, 8), (2, 6)) if TOY else ((32, 96), (16, 48))
SHAPE = {
    "hidden_size": 128 if TOY else 2048,
    "intermediate_size": 256 if TOY else 5632,
    "num_hidden_layers": 2 if TOY else 6,
    "num_attention_heads": 4 if TOY else 16,
    "num_key_value_heads": 2 if TOY else 4,
    "vocab_size": 512 if TOY else 8192,
    "max_position_embeddings": 512,
}
RANK = 16
WAYS = ("stock", "none", "one", "five")
CPU = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


class Engines:
    """Both engines in this process, and the requests that they are given."""

    def __init__(self, folder: Path, dtype: str) -> None:
        from vllm import LLM

        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(getattr(torch, dtype))
        model.save_pretrained(folder / "model")
        exported = []
        for index in range(ADAPTERS):
            adapter = SteeringAdapter(SteeringConfig(rank=RANK), model)
            with torch.no_grad():
                for layer in adapter.layers.values():
                    torch.nn.init.normal_(layer.up)
                    torch.nn.init.normal_(layer.static)
            exported.append(export(adapter, folder / f"ward-{index}", backbone=folder / "model"))
        shared = {
            "model": str(folder / "model"),
            "skip_tokenizer_init": True,
            "dtype": dtype,
            "max_model_len": 256,
            "max_num_seqs": AT_ONCE,
            "enforce_eager": not torch.cuda.is_available(),
            # the same prompts come again in every turn
            "enable_prefix_caching": False,
        }
        self.steered = LLM(**shared, **server_arguments(exported)).llm_engine
        self.stock = LLM(**shared).llm_engine
        self.folders = [one.folder for one in exported]
        drawn = random.Random(0)
        self.requests = [
            ([drawn.randrange(SHAPE["vocab_size"]) for _ in range(drawn.randint(*PROMPTS))],
             drawn.randint(*ANSWERS))
            for _ in range(REQUESTS)
        ]  # fmt: skip

    def turn(self, way: str) -> dict[str, Any]:
        """Seconds, and each request's seconds, of all requests answered in one way."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        engine = self.stock if way == "stock" else self.steered
        used = {"one": 1, "five": ADAPTERS}.get(way, 0)
        waiting = list(enumerate(self.requests))
        began: dict[str, float] = {}
        latencies = []
        tokens = 0
        started = time.perf_counter()
        while waiting or engine.has_unfinished_requests():
            while waiting and len(began) < AT_ONCE:
                index, (prompt, count) = waiting.pop(0)
                which = index % used if used else None
                name = f"{way}-{index}-{started}"
                began[name] = time.perf_counter()
                engine.add_request(
                    name,
                    {"prompt_token_ids": prompt},
                    SamplingParams(
                        temperature=0, max_tokens=count, ignore_eos=True, detokenize=False
                    ),
                    lora_request=None
                    if which is None
                    else LoRARequest(f"ward-{which}", which + 1, str(self.folders[which])),
                )
            for done in engine.step():
                if done.finished:
                    latencies.append(time.perf_counter() - began.pop(done.request_id))
                    tokens += len(done.outputs[0].token_ids)
        seconds = time.perf_counter() - started
        wanted = sum(count for _, count in self.requests)
        if tokens != wanted or len(latencies) != REQUESTS:
            raise SystemExit(f"{way}: {tokens} tokens were generated, want {wanted}")
        return {"tokens_per_s": tokens / seconds, "latencies": latencies}


def measure(rounds: int, dtype: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="dive-vllm-") as name:
        engines = Engines(Path(name), dtype)
        for way in WAYS:
            engines.turn(way)  # adapters are loaded, memory is touched
        turns: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for number in range(rounds):
            shift = number % len(WAYS)
            for way in WAYS[shift:] + WAYS[:shift]:
                turns[way].append(engines.turn(way))
    rates = {way: [one["tokens_per_s"] for one in turns[way]] for way in WAYS}
    rows = []
    for way in WAYS:
        latencies = [second for one in turns[way] for second in one["latencies"]]
        cuts = statistics.quantiles(latencies, n=20)
        row = {
            "adapters": {"stock": "no dive", "none": "0", "one": "1"}.get(way, str(ADAPTERS)),
            "tokens/s": round(statistics.median(rates[way]), 1),
            "latency p50, s": round(statistics.median(latencies), 3),
            "latency p95, s": round(cuts[-1], 3),
        }
        for other, name in (("stock", "no dive"), ("none", "0"), ("one", "1")):
            if other == way:
                break
            # within a round, so that what slows the machine slows both
            ratios = sorted(a / b for a, b in zip(rates[way], rates[other], strict=True))
            row[f"of {name}"] = round(statistics.median(ratios), 3)
            row[f"of {name}, least and most"] = [round(ratios[0], 3), round(ratios[-1], 3)]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1 if TOY else 5)
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        for name, value in CPU.items():
            os.environ.setdefault(name, value)
    register()
    import vllm

    rows = measure(given.rounds, given.dtype)
    head = {"vllm": vllm.__version__, "dtype": given.dtype, "shape": SHAPE, "rank": RANK,
            "requests": REQUESTS, "at once": AT_ONCE, "rounds": given.rounds}  # fmt: skip
    print(
        timing.write(
            "cpu-vllm" if device.type == "cpu" else "cuda-vllm", {**head, "rows": rows}, device
        )
    )
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
