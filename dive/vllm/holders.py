"""The weightless layers by which vLLM's LoRA manager keeps steering adapters on the device.

vLLM wraps each in a layer of its own, and calls `set_lora` and `reset_lora` of that when an adapter
becomes one of its `max_loras` active ones, from a request or before. `LayerHolder.bind` puts the
slot's own in their stead: buffers in the operator's form, in the dtypes that it computes with.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import ReplicatedLinear

from dive.errors import DiveError
from dive.vllm.installed import moved
from dive.vllm.packing import TARGET, unpack


class WeightlessLinear(ReplicatedLinear):
    """A linear layer without a weight, which is never called.

    vLLM allocates stacks of its input and output size for it, and never looks into them: with sizes
    of 1 they are next to nothing.
    """

    def __init__(self, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.input_size, self.output_size = 1, 1
        # the residual stream is whole on every rank of tensor parallelism
        self.tp_size, self.tp_rank = 1, 0
        self.prefix, self.quant_method, self.bias = "", None, None
        self.skip_bias_add, self.return_bias = False, False
        # by this vLLM finds the device
        self.register_buffer("weight", torch.zeros(0, device=device), persistent=False)

    def bind(self, wrapper: Any) -> None:
        """Makes room for the adapters that the LoRA manager of `wrapper`, vLLM's layer around this
        one, will put here; a layer that keeps none needs no room."""

    def set_lora(self, index: int, lora_a: Tensor, lora_b: Tensor) -> None:
        raise NotImplementedError

    def reset_lora(self, index: int) -> None:
        raise NotImplementedError


class LayerHolder(WeightlessLinear):
    """The adapters of one decoder layer: L of them, each of rank up to R.

    After `bind`: down [L, R, D] and up [L, D, R] in the LoRA dtype, down_bias [L, R], static [L, D]
    and scale [L] in float32, all zero where no adapter is; adapters [most tokens of a step] int64,
    vLLM's own buffer: the index of each token's adapter, below 0 for none.
    """

    down: Tensor
    up: Tensor
    down_bias: Tensor
    static: Tensor
    scale: Tensor
    adapters: Tensor

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        super().__init__(device)
        self.hidden_size = hidden_size
        self.held: set[int] = set()  # indices that have an adapter with numbers for this layer

    def bind(self, wrapper: Any) -> None:
        adapters = getattr(wrapper.punica_wrapper, "_token_lora_indices", None)
        if not isinstance(adapters, Tensor) or adapters.dtype != torch.int64:
            raise moved("keeps the adapters of a batch's tokens elsewhere")
        # not that of `weight`: weights that are quantised as they are loaded are on none till then
        config, device = wrapper.lora_config, adapters.device
        count, rank, width = config.max_loras, config.max_lora_rank, self.hidden_size
        parts: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "down": ((count, rank, width), config.lora_dtype),
            "up": ((count, width, rank), config.lora_dtype),
            "down_bias": ((count, rank), torch.float32),
            "static": ((count, width), torch.float32),
            "scale": ((count,), torch.float32),
        }
        for name, (shape, dtype) in parts.items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device), False)
        self.adapters = adapters

    def set_lora(self, index: int, lora_a: Tensor, lora_b: Tensor) -> None:
        self.reset_lora(index)
        if not lora_b.any() and not lora_a.any():
            return  # the dummies with which vLLM warms up
        layer = unpack(lora_a, lora_b)
        rank = layer.down.shape[0]
        self.down[index, :rank].copy_(layer.down)
        self.up[index, :, :rank].copy_(layer.up)
        self.down_bias[index, :rank].copy_(layer.down_bias)
        self.static[index].copy_(layer.static)
        self.scale[index].copy_(layer.scale)
        self.held.add(index)

    def reset_lora(self, index: int) -> None:
        self.held.discard(index)
        for part in (self.down, self.up, self.down_bias, self.static, self.scale):
            part[index].zero_()


class CardHolder(WeightlessLinear):
    """The card of each adapter: what it says of itself, checked when it arrives.

    check: called with the index and lora_A, or with None for an adapter that has no card; raises
        for an adapter that may not be served.
    """

    def __init__(self, device: torch.device, check: Callable[[int, Tensor | None], None]) -> None:
        super().__init__(device)
        self._check = check

    def set_lora(self, index: int, lora_a: Tensor, lora_b: Tensor) -> None:
        self._check(index, lora_a)

    def reset_lora(self, index: int) -> None:
        self._check(index, None)


def holders_of(manager: Any) -> list[tuple[str, Any]]:
    """The name and wrapper of each holder that a LoRA manager has; DiveError for anything else."""
    found = []
    for name, wrapper in manager.modules.items():
        if not isinstance(getattr(wrapper, "base_layer", None), WeightlessLinear):
            raise DiveError(
                f"the server lets LoRA change {name}, want --lora-target-modules {TARGET} alone: "
                "every other module costs time and has no adapter"
            )
        found.append((name, wrapper))
    return found
