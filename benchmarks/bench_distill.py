"""The distillation step and a report, against the plain PyTorch path, on this machine.

    python -m pytest benchmarks/bench_distill.py --benchmark-only

A random LLaVA with a real vocabulary size and the shape of a tiny decoder: what is compared is the
loss and the steering, not the backbone. `plain` is what one would write without this package: all
logits [B, T, V], cross entropy on them, and the reference edit in the same hooks.
"""

import os

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import dive
from dive import ops, reference

TOY = os.environ.get("DIVE_BENCH_TOY") == "1"
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
    """The operator, or the reference edit in its place."""
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

    def fused():
        hidden = model.model(ids, use_cache=False).last_hidden_state.flatten(0, 1)[index]
        loss = ops.decisive_cross_entropy(hidden, model.lm_head.weight, targets, weights).loss
        loss.backward()
        return loss

    def plain():
        logits = model(ids, use_cache=False).logits.float().flatten(0, 1)
        labels = torch.zeros(len(logits), dtype=torch.long).index_copy(0, index, targets)
        each = torch.zeros(len(logits)).index_copy(0, index, weights)
        rows = F.cross_entropy(logits, labels, reduction="none")
        loss = (each * rows).sum() / each.sum()
        loss.backward()
        return loss

    with dive.steer(model, adapter):
        step = fused if steering == "dive" else plain
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
        with dive.steer(model, adapter) as attachment:
            out = benchmark(write)
            assert attachment.calls > 0
    assert out.shape == (1, PROMPT + NEW_TOKENS)
