"""Decoders with random weights to measure decoding on, an adapter, and the bytes of a step."""

from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import dive
from dive.bench.case import reseed

FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig),
}
# family, width, layers, heads, heads of keys and values, inner width, vocabulary, further settings
SHAPES: dict[str, tuple[str, int, int, int, int, int, int, dict[str, Any]]] = {
    "256x4": ("llama", 256, 4, 4, 2, 768, 4096, {}),
    "512x4": ("llama", 512, 4, 8, 4, 1536, 8192, {}),
    "512x12": ("llama", 512, 12, 8, 4, 1536, 8192, {}),
    "1536x16": ("llama", 1536, 16, 12, 4, 4096, 32000, {}),
    "Llama-3-8B": ("llama", 4096, 32, 32, 8, 14336, 128256, {}),
    "Qwen2.5-7B": ("qwen2", 3584, 28, 28, 4, 18944, 152064, {}),
    "Gemma-3-4B": ("gemma3", 2560, 34, 8, 4, 10240, 262208, {"head_dim": 256}),
}
PAD = 0


def build(
    shape: str,
    dtype: torch.dtype,
    device: torch.device,
    context: int = 2048,
    *,
    toy: bool = False,
) -> Any:
    """Returns a decoder of this shape; at toy size a small one of its family."""
    family, width, layers, heads, kv, inner, vocabulary, more = SHAPES[shape]
    if toy:
        width, layers, heads, kv, inner, vocabulary = 64, 2, 4, 2, 96, 128
        more = {name: 16 for name in more}
    model_class, config_class = FAMILIES[family]
    reseed(0, device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        config = config_class(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            max_position_embeddings=context,
            pad_token_id=PAD,
            eos_token_id=None,
            **more,
        )
        with device:
            model = model_class(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    # a config of transformers has its own end of sequence, at which an answer would stop
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def adapter_for(model: Any, seed: int = 1, scale: float = 1e-3) -> dive.SteeringAdapter:
    """Returns an adapter of rank 16 in every layer, not zero but too small to cause overflow."""
    reseed(seed, model.device)
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=16), model)
    with torch.no_grad():
        layers: Any = adapter.layers
        for layer in layers.values():
            layer.up.normal_()
            layer.static.normal_()
            layer.scale.fill_(scale)
    return adapter


def step_bytes(
    model: Any, adapter: dive.SteeringAdapter, batch: int, cached: int
) -> dict[str, int]:
    """Returns the bytes that one step of `batch` sequences with `cached` tokens each must read."""
    config, size = model.config, model.dtype.itemsize
    weights = sum(one.numel() for one in model.parameters())
    if not config.tie_word_embeddings:  # a step reads one row of it
        weights -= model.get_input_embeddings().weight.numel()
    kinds = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    near = min(cached, getattr(config, "sliding_window", None) or cached)
    positions = sum(near if kind == "sliding_attention" else cached for kind in kinds)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers: Any = adapter.layers
    return {
        "weights": weights * size,
        "cache": batch * positions * 2 * config.num_key_value_heads * head * size,
        # the products' operands in the stream's dtype, the rest in float32
        "adapter": sum(
            (one.down.numel() + one.up.numel()) * size
            + 4 * (one.down_bias.numel() + one.static.numel())
            for one in layers.values()
        ),
    }
