"""Decoding at Llama-3-8B's shape: the session and the steered session, against the bytes read."""

from functools import cache, partial
from typing import Any

import torch

from benchmarks.decode_pairs import Bench, Case, measure
from benchmarks.first.look import gpu, kernels
from benchmarks.first.smoke import ALONE, BATCH, MODULE
from benchmarks.first.steps import Step
from benchmarks.timing import TOY

SHAPE, DTYPE = "Llama-3-8B", "bfloat16"
PAIRS = 4
NEEDS = (MODULE, ALONE, BATCH)


@cache
def bench() -> Bench:
    return Bench(SHAPE, DTYPE, gpu())


def build() -> dict[str, Any]:
    """Builds the model, and measures how fast its bytes can be read."""
    found = bench()
    by = max(found.rates, key=lambda name: found.rates[name])
    return {"summary": f"reads {found.rates[by]:.0f} GB/s by {by}", "read_GB_s": found.rates}


def step(batch: int) -> dict[str, Any]:
    found = measure(bench(), Case(SHAPE, DTYPE, batch, "session, steered", "session", PAIRS))
    if "not_run" in found:
        raise RuntimeError(found["not_run"])
    said = [
        f"{way} {ms:.3f} ms, {found['share_of_floor'][way]:.0%} of the floor"
        for way, ms in found["ms_a_token"].items()
    ]
    engines = {plan["engine"] for plan in found["plan"].values()}
    steered = "{:.3f} [{:.3f}, {:.3f}]".format(*found["times_beside"])
    summary = f"{'; '.join(said)}; steered is {steered} times it; {', '.join(engines)}"
    return {"summary": summary, **found}


def split(batch: int) -> dict[str, Any]:
    """Profiles the kernels of one steered answer: its prefill, and NEW steps."""
    torch.manual_seed(0)
    way = bench().way("session, steered", batch, 33)
    return kernels(partial(way, 4 if TOY else 33), 1)


STEPS = {
    "build": Step(build, 45, NEEDS),
    "batch 1": Step(partial(step, 1), 45, NEEDS),
    "batch 32": Step(partial(step, 2 if TOY else 32), 45, NEEDS),
    "batch 8": Step(partial(step, 2 if TOY else 8), 45, NEEDS),
    "kernels, batch 1": Step(partial(split, 1), 20, NEEDS),
    "kernels, batch 32": Step(partial(split, 2 if TOY else 32), 20, NEEDS),
}
