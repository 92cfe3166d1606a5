"""Random text decoders of every family, and two ways to run them side by side."""

import contextlib

import torch
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import dive
from dive.decode.session import DecodeSession

SIZES = {
    "vocab_size": 96,
    "hidden_size": 72,  # no multiple of any vector
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": False}),
    "llama3": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 24, "head_dim": 20}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-window": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32}),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "head_dim": 24,
            "layer_types": GEMMA_LAYERS,
            "sliding_window": 20,
            "query_pre_attn_scalar": 30,
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": None,
        },
    ),
}


def small(family: str, dtype=torch.float32, seed: int = 0, **more):
    """A random decoder in which norms and biases matter too; `more` sizes replace its own."""
    kind, config, own = FAMILIES[family]
    torch.manual_seed(seed)
    model = kind(config(**{**SIZES, **own, **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype)


def small_for_gpu(family: str, dtype=torch.float32, seed: int = 0, **more):
    """As `small`, in sizes that a GPU takes: multiples of eight; two layers unless asked."""
    own = FAMILIES[family][2]
    sizes = {"hidden_size": 96, "intermediate_size": 104, "num_hidden_layers": 2, **more}
    if "head_dim" in own:
        sizes.setdefault("head_dim", 24)
    if "layer_types" in own:
        sizes["layer_types"] = own["layer_types"][: sizes["num_hidden_layers"]]
    return small(family, dtype, seed, **sizes)


def steered(model, adapter):
    return contextlib.nullcontext() if adapter is None else dive.steer(model, adapter)


@torch.no_grad()
def forced(session: DecodeSession, ids, prompt: int, adapter=None):
    """Logits [T - prompt, V] of the engine, fed `ids` [1, T] after a prefill by the model."""
    model = session.model
    assert session.engine_choice().engine == "dive._C", session.engine_choice()
    engine, spec = session.binding.cache.engine, session.binding.spec
    cache = DynamicCache(config=model.config)
    with steered(model, adapter):
        model(input_ids=ids[:, :prompt], past_key_values=cache, use_cache=True)
    engine.reserve(1, ids.shape[1])
    for index, layer in enumerate(cache.layers):
        kept = layer.keys.shape[2]
        engine.copy_cache(index, 0, prompt - kept, layer.keys[0], layer.values[0])
    engine.start_slot(0, prompt, prompt)
    engine.steer_slot(0, session.binding.steering(adapter))
    out = torch.zeros(ids.shape[1] - prompt, spec.vocabulary, device=ids.device)
    following = torch.zeros(1, dtype=torch.long, device=ids.device)
    for step in range(prompt, ids.shape[1]):
        row = out[step - prompt][None]
        engine.step(ids[0, step : step + 1], torch.tensor([0]), following, row)
        assert following.item() == row.argmax().item()
    return out


@torch.no_grad()
def stepwise_logits(model, ids, prompt: int):
    """Logits [T - prompt, V] of transformers, fed `ids` [1, T] one by one after the prompt."""
    cache = DynamicCache(config=model.config)
    model(input_ids=ids[:, :prompt], past_key_values=cache)
    steps = range(prompt, ids.shape[1])
    return torch.cat(
        [model(input_ids=ids[:, t : t + 1], past_key_values=cache).logits[0] for t in steps]
    )


def distance(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def both(session, batch, adapter=None, **kwargs):
    """transformers' answer and the session's, from the same seed."""
    torch.manual_seed(7)
    with steered(session.model, adapter):
        want = session.model.generate(**batch, **kwargs)
    torch.manual_seed(7)
    got = session.model.generate(**batch, custom_generate=session, **kwargs)
    return got, want


def text_batch(rows=3, prompt=9, seed=5):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 96, (rows, prompt), generator=g)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        ids[row, : 2 * row], mask[row, : 2 * row] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def check_equal_logits(model, value, other):
    """A step over logits that are all `value`, but for one token's, which is less."""
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.full((SIZES["vocab_size"],), value))
    if other is not None:
        model.lm_head.bias.data[other] -= 1
    session = DecodeSession(model)
    session.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=1)
    assert session.ran is not None and session.ran.engine == "dive._C", session.ran
    cache = session.binding.cache
    cache.vacate()
    cache.reserve(2, 8)
    got = cache.step(torch.tensor([0, 1]), torch.tensor([5, 7]))
    assert got.tolist() == [-1 if other is None else int(other == 0)] * 2
