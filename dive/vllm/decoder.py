"""The decoder layers of a model in vLLM, found by structure, and the hook that steers after each.

A layer of vLLM returns (hidden_states, residual), whose sum is the residual stream, which
transformers knows as the output of the layer, or the stream itself. The next layer adds the two, so
the change is added to hidden_states, and residual stays. Some families return a residual that is in
hidden_states already (EXAONE 4, StableLM, Cohere): what a layer does with the two that it is given
tells these from the others, and they are refused.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from dive.errors import DiveError
from dive.ops import steer_grouped_
from dive.vllm.holders import LayerHolder
from dive.vllm.packing import TARGET
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
    summed = adds_residual(layer)
    activation, norm_preserving, eps = settings.activation, settings.norm_preserving, settings.eps

    def hook(module: Any, _inputs: Any, output: Any) -> Any:
        hidden, residual = _stream(module, output, summed)
        held = getattr(module, TARGET).base_layer
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


class _FirstCall(Exception):
    """Ends a layer at the first module that it calls; args: what that was given."""


def adds_residual(layer: nn.Module) -> bool:
    """Whether the sum of hidden_states and residual is the stream that a decoder layer begins with.

    Then the first thing that it does is to give both, as they are, to a norm that adds them. The
    layer is called to find out, and ended there, before anything is computed.
    """
    given = inspect.signature(layer.forward).parameters
    if not {"hidden_states", "residual"} <= given.keys():
        return False
    hidden, residual = torch.zeros(1), torch.zeros(1)

    def look(_module: Any, args: Any, named: Any) -> None:
        raise _FirstCall(*args, *named.values())

    inside = [module for module in layer.modules() if module is not layer]
    handles = [module.register_forward_pre_hook(look, with_kwargs=True) for module in inside]
    needed = [
        name
        for name, one in given.items()
        if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    called: tuple[Any, ...] = ()
    try:
        layer.forward(**{**dict.fromkeys(needed), "hidden_states": hidden, "residual": residual})
    except _FirstCall as call:
        called = call.args
    except Exception:  # it looks at its other inputs first, and cannot be told
        called = ()
    finally:
        for handle in handles:
            handle.remove()
    return all(any(one is other for other in called) for one in (hidden, residual))


def _stream(layer: Any, output: Any, summed: bool) -> tuple[Tensor, Tensor | None]:
    """hidden_states and residual [T, D], views of a decoder layer's output. summed: the layers add
    the two."""
    if isinstance(output, Tensor):
        return output.view(-1, output.shape[-1]), None
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor):
        hidden, residual = output
        if residual is None or (summed and isinstance(residual, Tensor)):
            return hidden, residual
    raise DiveError(
        f"a {type(layer).__name__} of vLLM returned something else than hidden_states, or those "
        "and a residual that the next layer adds: dive cannot steer this model in vLLM (without: "
        "dive generate --engine transformers)"
    )


def hold_in(layer: nn.Module, hidden_size: int, device: Any) -> LayerHolder:
    """Adds the weightless layer that keeps a decoder layer's adapters."""
    holder = LayerHolder(hidden_size, device)
    setattr(layer, TARGET, holder)
    return holder
