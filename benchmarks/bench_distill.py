"""The distillation step and a report, against the plain PyTorch path; and a whole distillation.

    python -m pytest benchmarks/bench_distill.py --benchmark-only
    python -m benchmarks.bench_distill [--studies 64] [--device cuda]     <device>-distill.json

The first runs on a random decoder with a real vocabulary size and the shape of a tiny one: it
compares the loss and the steering, not the backbone. `plain` is what one would write without this
package: all logits [B, T, V], cross entropy on them, and the reference edit in the same hooks.

The second times `dive.distill` from studies to adapter on a backbone of MedGemma-4B's shape
(benchmarks/medgemma.py) with 4 demonstrations, 256-token images, the default preset and length,
including the teacher's forwards and the vision tower. A thousand studies are measured if they fit
into the time, judged by fewer; otherwise the figure for a thousand is a projection and called so.
"""

import argparse
import gc
import time
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import dive
from benchmarks import timing
from benchmarks.timing import TOY
from dive import ops, reference

WIDTH, LAYERS, VOCAB = (64, 2, 512) if TOY else (512, 6, 32000)
BATCH, PROMPT, REPORT = (2, 16, 8) if TOY else (4, 160, 96)
NEW_TOKENS = 4 if TOY else 32


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def adapter(model):
    torch.manual_seed(1)
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=16), model)
    for layer in adapter.layers.values():
        torch.nn.init.normal_(layer.up, std=0.05)
    return adapter


@pytest.fixture
def steering(request, monkeypatch):
    """The operator, or in its place the reference edit."""
    if request.param == "plain":
        monkeypatch.setattr(ops, "steer", reference.steer)
    return request.param


@pytest.mark.parametrize("steering", ["dive", "plain"], indirect=True)
def test_distillation_step(benchmark, model, adapter, steering):
    benchmark.group = f"distillation step, {BATCH} x ({PROMPT} + {REPORT}) tokens, V={VOCAB}"
    ids = torch.randint(VOCAB, (BATCH, PROMPT + REPORT))
    weights = torch.where(torch.rand(BATCH * REPORT) < 0.15, 4.0, 1.0)
    index = torch.cat([b * ids.shape[1] + torch.arange(PROMPT - 1, ids.shape[1] - 1)
                       for b in range(BATCH)])  # fmt: skip
    targets = ids.flatten()[index + 1]

    def with_operators():
        hidden = model.model(ids, use_cache=False).last_hidden_state.flatten(0, 1)[index]
        loss = ops.decisive_cross_entropy(hidden, model.lm_head.weight, targets, weights).loss
        loss.backward()
        return loss

    def plain():
        logits = model(ids, use_cache=False).logits.float().flatten(0, 1)
        labels = torch.zeros(len(logits), dtype=torch.long).index_copy(0, index, targets)
        each = torch.zeros(len(logits)).index_copy(0, index, weights)
        terms = F.cross_entropy(logits, labels, reduction="none")
        loss = (each * terms).sum() / each.sum()
        loss.backward()
        return loss

    with dive.steer(model, adapter):
        step = with_operators if steering == "dive" else plain
        loss = benchmark(step)
        assert torch.allclose(loss, plain(), rtol=1e-4)


@pytest.mark.parametrize("steering", ["off", "dive", "plain"], indirect=True)
def test_report(benchmark, model, adapter, steering):
    benchmark.group = f"a report of {NEW_TOKENS} tokens behind {PROMPT}"
    ids = torch.randint(VOCAB, (1, PROMPT))

    def write():
        return model.generate(
            ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip

    if steering == "off":
        out = benchmark(write)
    else:
        steered: list[bool] = []
        layer = next(iter(adapter.layers.values()))
        with dive.steer(model, adapter):
            handle = layer.register_forward_hook(lambda *_: steered.append(True))
            model(ids)
            handle.remove()
            assert steered
            out = benchmark(write)
    assert out.shape == (1, PROMPT + NEW_TOKENS)


WANTED = 1000
# settings beyond the defaults; the second fits a GPU of 24 GB
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {"cache_images": True},
    "for 24 GB": {
        "cache_images": True,
        "batch_size": 1,
        "gradient_accumulation": 8,
        "gradient_checkpointing": True,
    },
}


def distillation(backbone: dive.Backbone, count: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Time one whole `dive.distill` over `count` studies."""
    from benchmarks.medgemma import studies

    chosen = studies(count, backbone.tokenizer)
    if TOY:
        settings = settings | {"steps": 2}
    config = dive.DistillConfig(**settings)
    device, found = backbone.device, {}
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    adapter = dive.distill(backbone, chosen, 2 if TOY else 4, config, progress=False)
    if device.type == "cuda":
        torch.cuda.synchronize()
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["peak_reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    seconds = time.perf_counter() - start
    assert all(one.isfinite().all() for one in adapter.parameters())
    return {"studies": count, "seconds": seconds, **found, "config": asdict(config)}


def main() -> None:
    from benchmarks import medgemma

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default=timing.default_device().type)
    parser.add_argument("--studies", type=int, default=8 if TOY else 64, help="to measure first")
    timing.add_options(parser)
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    head = {"what": "dive.distill, MedGemma-4B's shape, random weights", "studies": options.studies}
    record = timing.ResultsFile(
        f"{timing.short_name(device)}-distill-run",
        head,
        device,
        **timing.options_of(options),
    )
    start, built = time.monotonic(), None
    for name, settings in CONFIGURATIONS.items():
        full = f"{name}, {WANTED} studies"
        look, whole = record.wanted(name), record.wanted(full)
        if not look and not whole:
            continue
        if built is None:
            built = medgemma.backbone(dtype, device)
            distillation(built, 8, settings | {"steps": 1})  # kernels compile, caches fill
        result = distillation(built, options.studies, settings)
        result["projected_seconds_1000_studies"] = result["seconds"] * WANTED / options.studies
        print(name, result, flush=True)
        if look:
            record.add({"case": name, **result})
        left = 60 * (options.minutes or 0) - (time.monotonic() - start)
        if whole and result["projected_seconds_1000_studies"] < left:
            result = distillation(built, WANTED, settings)
            record.add({"case": full, **result})
            print(name, result, flush=True)
    print(record.close())


if __name__ == "__main__":
    main()
