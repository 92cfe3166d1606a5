"""Greedy decoding as in gpt-fast: a static cache, one compiled graph per token, a loop over it.

The model is transformers' own; cache, masks and loop are here, so that a token takes one call of a
compiled function: fullgraph, CUDA graphs, matrix-vector kernels tuned by coordinate descent.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import TOY


class StaticCache:
    """Keys and values [B, heads, capacity, width] per layer, written in place at `positions`."""

    is_compileable = True

    def __init__(self, model: Any, batch: int, capacity: int) -> None:
        config = model.config.get_text_config()
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        shape = (batch, config.num_key_value_heads, capacity, width)
        on = {"dtype": model.dtype, "device": model.device}
        self.keys = [torch.zeros(shape, **on) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros(shape, **on) for _ in range(config.num_hidden_layers)]
        self.positions = torch.zeros(1, dtype=torch.long, device=model.device)
        for one in (*self.keys, *self.values):
            torch._dynamo.mark_static_address(one)  # written in place inside a CUDA graph

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> Any:
        self.keys[layer].index_copy_(2, self.positions, keys)
        self.values[layer].index_copy_(2, self.positions, values)
        return self.keys[layer], self.values[layer]

    def get_seq_length(self, *_: Any) -> int:
        return 0  # positions and masks are given


class CompiledLoop:
    """Decodes batches of one shape; the first call compiles."""

    def __init__(self, model: Any, batch: int, capacity: int) -> None:
        self.model, self.cache = model, StaticCache(model, batch, capacity)
        self.cached = torch.arange(capacity, device=model.device)
        kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
        self.sliding = "sliding_attention" in kinds
        self.window: int = (
            getattr(model.config.get_text_config(), "sliding_window", None) or capacity
        )
        if TOY:
            self.compiled = torch.compile(self._step, backend="eager", fullgraph=True)
        else:
            options: dict[str, Any] = {}
            if model.device.type == "cuda":
                options = {"triton.cudagraphs": True, "coordinate_descent_tuning": True}
            self.compiled = torch.compile(self._step, fullgraph=True, options=options)

    def _step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Returns the next token of each row [B, 1]; tokens [B, T] at positions [T]."""
        self.cache.positions = positions
        full = self.cached <= positions[:, None]
        mask: Any = full[None, None]
        if self.sliding:
            near = full & (self.cached > positions[:, None] - self.window)
            mask = {"full_attention": mask, "sliding_attention": near[None, None]}
        logits = self.model(
            input_ids=tokens,
            position_ids=positions[None].expand(len(tokens), -1),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def generate(self, ids: Tensor, new: int) -> Tensor:
        """Returns prompt and answer [B, T + new]; ids [B, T]."""
        answer = torch.empty(len(ids), new, dtype=torch.long, device=ids.device)
        positions = torch.arange(ids.shape[1], device=ids.device)
        tokens = self._step(ids, positions)
        answer[:, :1] = tokens
        position = positions[-1:] + 1
        for index in range(1, new):
            tokens = self.compiled(tokens.clone(), position)
            answer[:, index : index + 1] = tokens
            position = position + 1
        return torch.cat([ids, answer], 1)
