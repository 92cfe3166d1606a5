"""Finding decoder, head and hidden states in models of every family."""

import gc
import weakref

import pytest
import torch
from tiny_steering import logits, prompts, randomised
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
)

import dive
from dive.adapter.attach import steer
from dive.backbone import structure
from dive.errors import DiveError


def test_decoder_layers_are_those_of_the_text_model(any_backbone):
    layers = structure.decoder_layers(any_backbone)
    text = any_backbone.model.config.get_text_config()
    assert len(layers) == text.num_hidden_layers == 3
    names = [name for name, module in any_backbone.model.named_modules() if module is layers[0]]
    assert names and "vision" not in names[0]
    # a bare model and its base lead to the same place
    assert structure.decoder_layers(any_backbone.model) is layers
    assert structure.decoder_layers(any_backbone.model.base_model) is layers


def test_last_hidden_state_and_head_make_the_models_own_logits(any_backbone, studies):
    batch = prompts(any_backbone, studies[:2])
    head = structure.output_head(any_backbone)
    assert head.weight is any_backbone.model.get_output_embeddings().weight
    with torch.no_grad():
        hidden = structure.last_hidden_state(any_backbone, {**batch, "logits_to_keep": 1})
        assert torch.equal(head(hidden), logits(any_backbone.model, batch))
    assert hidden.shape == (
        *batch["input_ids"].shape,
        any_backbone.model.config.get_text_config().hidden_size,
    )


def test_softcap_and_bias_of_the_head():
    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=0.5,
        initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval()
    model.lm_head = nn.Linear(16, 64)  # untied, and with a bias
    head = structure.output_head(model)
    batch = {"input_ids": torch.tensor([[7, 8, 9]])}
    wanted = logits(model, batch)
    assert head.softcap == 0.5 and head.bias is not None
    assert 0.3 < wanted.abs().max() <= 0.5
    with torch.no_grad():
        assert torch.equal(head(structure.last_hidden_state(model, batch)), wanted)


@pytest.mark.parametrize("cap", [0.0, -1.0, 1e-300, 1e30, float("nan"), True, "30"])
def test_a_softcap_that_is_none_is_refused(cap, tiny_llama):
    model = dive.load_backbone(tiny_llama).model
    model.config.final_logit_softcapping = cap
    with pytest.raises(DiveError, match=r"LlamaForCausalLM: final_logit_softcapping is .*, want"):
        structure.output_head(model)


def test_a_model_that_scales_its_logits_is_refused():
    config = CohereConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, logit_scale=0.5, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CohereForCausalLM(config).eval()
    with pytest.raises(DiveError, match="CohereForCausalLM: its logits are not last_hidden_state"):
        structure.output_head(model)


def test_what_has_no_decoder_layers_is_refused():
    config = BertConfig(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    with pytest.raises(
        DiveError, match="BertForMaskedLM has no text decoder with a list of layers"
    ):
        structure.decoder_layers(BertForMaskedLM(config))
    with pytest.raises(DiveError, match="got a Linear, want a Backbone or a transformers model"):
        structure.decoder_layers(nn.Linear(2, 2))
    with pytest.raises(DiveError, match="got a str, want a Backbone or a transformers model"):
        structure.decoder_layers("model")


def test_a_base_model_has_no_hidden_state_beneath_it(any_backbone):
    base = any_backbone.model.base_model
    with pytest.raises(DiveError, match="has no base model beneath its head"):
        structure.last_hidden_state(base, {})


def test_description_names_sizes_of_the_text_model(any_backbone):
    found = structure.backbone_facts(any_backbone)
    model = any_backbone.model
    assert found["architecture"] == type(model).__name__
    assert found["model_type"] == model.config.model_type
    assert (found["hidden_size"], found["num_layers"]) == (32, 3)
    assert found["vocab_size"] == model.get_output_embeddings().weight.shape[0]
    assert found["attn_implementation"] == "sdpa"


def test_nothing_here_keeps_a_model_alive(tiny_llama):
    model = dive.load_backbone(tiny_llama).model
    structure.output_head(model)
    steer(model, randomised(model))  # never detached
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
