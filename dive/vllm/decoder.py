"""The decoder layers of a model in vLLM, found by structure, and the hook that steers after each.

A layer of vLLM returns (hidden_states, residual), whose sum is the residual stream, which
transformers knows as the output of the layer, or the stream itself. The next layer adds the two, so
the change is added to hidden_states, and residual stays.
"""

from typing import Any

from torch import Tensor, nn

from dive.errors import DiveError
from dive.ops.steering_grouped import steer_grouped_
from dive.vllm.holders import NAME, LayerHolder
from dive.vllm.settings import ServerSteering


def decoder_of(model: nn.Module, text_config: Any) -> tuple[str, nn.Module, nn.ModuleList]:
    """The name in `model` of the module that owns the text decoder's layers, itself, and these.

    Under pipeline parallelism the list is whole, with placeholders for the layers of other ranks.

    Raises:
        DiveError: the model has no such list, or several.
    """
    count = text_config.num_hidden_layers
    given: Any = model
    text = given.get_language_model() if hasattr(given, "get_language_model") else given
    names = {id(module): name for name, module in model.named_modules()}
    found = [
        (names[id(owner)], owner, layers)
        for owner in text.modules()
        for layers in owner.children()
        if isinstance(layers, nn.ModuleList) and len(layers) == count and id(owner) in names
    ]
    listed = {id(layers): one for one in found for layers in one[2:]}
    if len(listed) != 1:
        raise DiveError(
            f"{type(model).__name__} has {len(listed) or 'no'} lists of {count} decoder layers in "
            "vLLM, want one: its residual stream is not where dive can steer it (without vLLM: "
            "dive generate --engine transformers)"
        )
    return next(iter(listed.values()))


def steer_after(layer: nn.Module, settings: ServerSteering) -> None:
    """Registers the hook that applies the adapters held by `layer.dive_steer` to its output."""
    activation, norm_preserving, eps = settings.activation, settings.norm_preserving, settings.eps

    def hook(module: Any, _inputs: Any, output: Any) -> Any:
        hidden, residual = _stream(module, output)
        held = getattr(module, NAME).base_layer
        steer_grouped_(
            hidden,
            residual,
            held.adapters,
            held.down,
            held.down_bias,
            held.up,
            held.static,
            held.scale,
            activation=activation,
            norm_preserving=norm_preserving,
            eps=eps,
        )
        return output

    layer.register_forward_hook(hook)


def _stream(layer: Any, output: Any) -> tuple[Tensor, Tensor | None]:
    """hidden_states and residual [T, D], views of a decoder layer's output."""
    if isinstance(output, Tensor):
        return output.view(-1, output.shape[-1]), None
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor):
        hidden, residual = output
        if residual is None or isinstance(residual, Tensor):
            return hidden, residual
    raise DiveError(
        f"a {type(layer).__name__} of vLLM returned something else than hidden_states, or those "
        "and their residual: dive cannot steer this model in vLLM (without: dive generate "
        "--engine transformers)"
    )


def hold_in(layer: nn.Module, hidden_size: int, device: Any) -> None:
    """Adds the weightless layer that keeps a decoder layer's adapters."""
    setattr(layer, NAME, LayerHolder(hidden_size, device))
