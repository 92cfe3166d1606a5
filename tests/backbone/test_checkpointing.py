"""Gradient checkpointing of a frozen model in eval mode: it recomputes, and changes nothing."""

from collections import Counter

import pytest
import torch
from tiny_steering import fingerprint, logits, prompts, randomised
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

import dive
from dive.backbone.gradient_checkpointing import enable_gradient_checkpointing
from dive.backbone.structure import decoder_layers, last_hidden_state
from dive.errors import DiveError


class Calls:
    """Counts how often the attention of each decoder layer runs."""

    def __init__(self, model):
        self.count = Counter()
        self.hooks = [
            layer.self_attn.register_forward_pre_hook(lambda *_, i=i: self.count.update([i]))
            for i, layer in enumerate(decoder_layers(model))
        ]

    def take(self):
        counted = [self.count[i] for i in range(len(self.hooks))]
        self.count.clear()
        return counted

    def remove(self):
        for hook in self.hooks:
            hook.remove()


def gradient(model, adapter, batch, mask=None, after_forward=lambda attachment: None):
    """Gradient of a sum over the last states, one flat vector."""
    adapter.zero_grad()
    with dive.steer(model, adapter) as attachment:
        attachment.mask = mask
        hidden = last_hidden_state(model, batch)
        after_forward(attachment)
        (hidden.float() * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
    return torch.cat([p.grad.flatten() for p in adapter.parameters()])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_recomputes_and_gives_the_same_gradient(any_backbone, studies, dropout):
    model, batch = any_backbone.model, prompts(any_backbone, studies[:2], side="right")
    adapter = randomised(model)
    logits(model, batch)  # transformers installs recording hooks of its own at the first forward
    trace = fingerprint(model)
    attentions = [layer.self_attn for layer in decoder_layers(model)]
    own = [attention.attention_dropout for attention in attentions]
    for attention in attentions:
        attention.attention_dropout = dropout
    calls = Calls(model)
    try:
        plain = gradient(model, adapter, batch)
        assert calls.take() == [1, 1, 1]
        handle = enable_gradient_checkpointing(any_backbone)
        try:
            saved = gradient(model, adapter, batch)
            # the input of layer 0 has no gradient; where transformers runs hooks outside the
            # checkpoint, as it does now, there is nothing to recompute in that layer
            assert calls.take()[1:] == [2, 2]
            assert not any(module.training for module in model.modules())
            # a teacher needs no gradient and recomputes nothing
            logits(model, batch)
            assert calls.take() == [1, 1, 1]
        finally:
            handle.remove()
        gradient(model, adapter, batch)
        assert calls.take() == [1, 1, 1]
    finally:
        calls.remove()
        for attention, value in zip(attentions, own, strict=True):
            attention.attention_dropout = value
    assert plain.abs().max() > 0.1
    assert torch.equal(saved, plain)
    assert fingerprint(model) == trace


def test_dropout_would_show_in_training_mode(tiny_llama, studies):
    """The control of the test above: with the layers in training mode gradients differ."""
    backbone = dive.load_backbone(tiny_llama)
    batch, adapter = prompts(backbone, studies[:2]), randomised(backbone)
    for layer in decoder_layers(backbone):
        layer.self_attn.attention_dropout = 0.5
    plain = gradient(backbone.model, adapter, batch)
    backbone.model.train()
    assert not torch.allclose(gradient(backbone.model, adapter, batch), plain, rtol=0.05)


def test_dropout_in_the_layer_itself_stays_off():
    """OPT's layers read their own training flag, which is the one that is set."""
    config = OPTConfig(
        vocab_size=32, hidden_size=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, word_embed_proj_dim=16, dropout=0.5, init_std=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = OPTForCausalLM(config).eval().requires_grad_(False)
    adapter, batch = randomised(model), {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    plain = gradient(model, adapter, batch)
    handle = enable_gradient_checkpointing(model)
    assert torch.equal(gradient(model, adapter, batch), plain)
    handle.remove()
    assert plain.abs().max() > 0


def test_the_mask_of_the_forward_holds_in_the_backward(any_backbone, studies):
    model, batch = any_backbone.model, prompts(any_backbone, studies[:2], side="right")
    adapter = randomised(model)
    mask = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    mask[:, 4:9] = True

    def forget(attachment):
        attachment.mask, attachment.enabled = None, False

    plain = gradient(model, adapter, batch, mask)
    handle = enable_gradient_checkpointing(model)
    try:
        assert torch.equal(gradient(model, adapter, batch, mask, forget), plain)
    finally:
        handle.remove()
    assert not torch.equal(gradient(model, adapter, batch), plain)


def test_generate_works_while_it_is_on(any_backbone, studies):
    model, batch = any_backbone.model, prompts(any_backbone, studies[:1])
    options = {"do_sample": False, "max_new_tokens": 5}
    wanted = model.generate(**batch, **options)
    handle = enable_gradient_checkpointing(model)
    try:
        assert torch.equal(model.generate(**batch, **options), wanted)
    finally:
        handle.remove()


def test_a_failing_forward_leaves_eval_mode(tiny_llama):
    model = dive.load_backbone(tiny_llama).model
    handle = enable_gradient_checkpointing(model)
    adapter = randomised(model)
    with dive.steer(model, adapter) as attachment, pytest.raises(DiveError):
        attachment.mask = torch.ones(1, 1, dtype=torch.bool)
        model(torch.tensor([[5, 6, 7]]), use_cache=False)
    assert not any(module.training for module in model.modules())
    handle.remove()


def test_twice_and_unsuitable_models_are_refused(tiny_llama):
    model = dive.load_backbone(tiny_llama).model
    handle = enable_gradient_checkpointing(model)
    with pytest.raises(DiveError, match="on already for this model"):
        enable_gradient_checkpointing(model)
    handle.remove()
    enable_gradient_checkpointing(model).remove()

    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2)])
            self.config = model.config

    with pytest.raises(
        DiveError, match="Linear of Foreign does not support gradient checkpointing"
    ):
        enable_gradient_checkpointing(Foreign())
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=8))
    with pytest.raises(DiveError, match="GPT2LMHeadModel has no text decoder"):
        enable_gradient_checkpointing(gpt)
