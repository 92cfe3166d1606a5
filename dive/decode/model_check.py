"""Checks that a text decoder computes what its classes and its config define, and nothing else.

The engine reads sizes, settings and weights, and computes by the family. What a user may have added
(a hook, another attention function, one layer that differs) is found here, so that such a decoder
runs in transformers.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from transformers.activations import ACT2FN
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dive.backbone.gradient_checkpointing import RecomputedForward
from dive.errors import DiveError

# packages whose modules the engine replaces, or which are refused by their family or type
_KNOWN = ("torch.nn.modules.", "transformers.")
_HINTS = {
    "peft": " (PEFT's merge_and_unload() leaves plain layers)",
    "torch._dynamo": " (compile the whole model, or none of it, for dive._C)",
}
# what transformers calls for every token, and the engine does not
_STEPS = ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
_SETTINGS = (  # of the config, that change what a forward computes
    "num_hidden_layers", "hidden_act", "hidden_activation", "rms_norm_eps", "layer_types",
    "sliding_window", "rope_parameters", "attn_logit_softcapping", "final_logit_softcapping",
    "use_bidirectional_attention", "max_position_embeddings", "_attn_implementation",
)  # fmt: skip


class Unsupported(DiveError):
    """The engine cannot run this decoder; the message says why."""


def layers_of(text: Any) -> list[Any]:
    """The layers that a forward runs: the config's number of them."""
    return list(text.layers[: text.config.num_hidden_layers])


def path_to(model: nn.Module, text: nn.Module) -> str:
    """The name of the text decoder in its model; "" where it is the model itself."""
    return next(name for name, module in model.named_modules() if module is text)


def check_modules(model: nn.Module, path: str, head: nn.Module) -> None:
    """Raises Unsupported unless each module computes what its class defines, dive's hooks aside.

    path: `path_to` the text decoder. The modules around it run for the prompt, in transformers, and
    not for the tokens after it, so they must not change what passes through.
    """
    if all_modules._global_forward_hooks or all_modules._global_forward_pre_hooks:
        raise Unsupported("a forward hook is on every module (register_module_forward_hook)")
    for step in _STEPS:
        if step in vars(model) or not _is_known(getattr(type(model), step)):
            raise Unsupported(f"its {step} is not its library's")
    around: Any = model
    for part in path.split(".") if path else ():
        _check_forward(type(around).__name__, around)
        around = getattr(around, part)
    for name, module in [*around.named_modules(), ("its head", head)]:
        kind = type(module).__module__
        if not kind.startswith(_KNOWN):
            parts = kind.split(".")
            hint = next((_HINTS[p] for p in (parts[0], ".".join(parts[:2])) if p in _HINTS), None)
            raise Unsupported(
                f"{name or 'its decoder'} is a {type(module).__name__} of {parts[0]}"
                + (" (quantised, perhaps)" if hint is None else hint)
            )
        _check_forward(name or "its decoder", module)
    if around.training:
        raise Unsupported("the model is in training mode")
    device = next(iter(around.parameters())).device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        raise Unsupported("autocast is on, under which modules compute in another dtype")
    _check_attention(around)


def _check_forward(name: str, module: nn.Module) -> None:
    if "forward" in vars(module) and not (_recomputed(module) or _compiled_alone(module)):
        raise Unsupported(f"the forward of {name} was replaced (offloaded?)")
    if not (_is_known(type(module).forward) and _is_known(type(module).__call__)):
        raise Unsupported(f"the forward of {name}, a {type(module).__name__}, is not its library's")
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        # ours and transformers' only observe, or the engine computes their effect
        if not getattr(hook, "__module__", "").startswith(("dive.", "transformers.")):
            raise Unsupported(f"{name} has a forward hook")


def _recomputed(module: Any) -> bool:
    """Whether dive's gradient checkpointing is all that was done to it."""
    forward = vars(module)["forward"]
    return isinstance(forward, RecomputedForward) and forward.inner is None


def _compiled_alone(module: Any) -> bool:
    """Whether `module.forward = torch.compile(module.forward)` is all that was done to it."""
    inner = getattr(vars(module)["forward"], "_torchdynamo_orig_callable", None)
    own = getattr(inner, "__self__", None) is module
    return own and getattr(inner, "__func__", None) is type(module).forward


@cache
def _is_known(function: Callable[..., Any]) -> bool:
    """Whether a function is torch's or transformers' own through all its wrappers. (Its __module__
    does not show it: functools.wraps copies that.)"""
    one: Any = function
    while one is not None:
        if isinstance(one, partial):
            one = one.func
            continue
        home = getattr(one, "__globals__", {}).get("__name__", "")
        if not home.startswith(("torch.", "transformers.")):
            return False
        one = getattr(one, "__wrapped__", None)
    return True


def _check_attention(text: Any) -> None:
    """Raises Unsupported unless attention and mask are computed by transformers' own functions."""
    for layer in layers_of(text):
        config = layer.self_attn.config
        name = config._attn_implementation or "eager"
        home = sys.modules[type(layer.self_attn).__module__]
        eager = getattr(home, "eager_attention_forward", None)
        functions = [ALL_ATTENTION_FUNCTIONS.get(name, eager)]
        if name in ALL_MASK_ATTENTION_FUNCTIONS:
            functions.append(ALL_MASK_ATTENTION_FUNCTIONS[name])
        if not all(function is not None and _is_known(function) for function in functions):
            raise Unsupported(f"its attention {name!r} is a function of your own")


def check_alike(text: Any) -> None:
    """Raises Unsupported unless all layers are of the decoder's own classes and compute with the
    config's numbers, as the engine uses the same for every layer."""
    config = text.config
    home, layers = type(text).__module__, layers_of(text)
    if not layers:
        raise Unsupported("it has no layers")
    gate = getattr(config, "hidden_activation", None) or config.hidden_act
    activation = type(ACT2FN[gate]) if gate in ACT2FN else None
    scale = layers[0].self_attn.scaling
    _check_norm("norm", text.norm, text)
    if getattr(text.embed_tokens, "max_norm", None) is not None:
        raise Unsupported("its embeddings have a max_norm")
    for index, layer in enumerate(layers):
        for part, module in (("", layer), (".self_attn", layer.self_attn), (".mlp", layer.mlp)):
            if type(module).__module__ != home:
                raise Unsupported(f"layers.{index}{part} is a {type(module).__name__} of {home}")
        if type(layer.mlp.act_fn) is not activation:
            raise Unsupported(
                f"layers.{index}.mlp.act_fn is a {type(layer.mlp.act_fn).__name__}, and the "
                f"config's activation is {gate}"
            )
        if layer.self_attn.scaling != scale:
            raise Unsupported(
                f"layers.{index}.self_attn.scaling is {layer.self_attn.scaling}, and that of "
                f"layers.0 {scale}"
            )
        window = window_of(config, index)
        own = getattr(layer.self_attn, "sliding_window", window)
        if own != window:
            raise Unsupported(
                f"layers.{index}.self_attn.sliding_window is {own}, and by the config {window}"
            )
        for name, norm in _norms(layer):
            _check_norm(f"layers.{index}.{name}", norm, text)


def window_of(config: Any, index: int) -> int | None:
    """A layer's attention window by the config, the own position included; None: all."""
    types = getattr(config, "layer_types", None)
    if config.model_type == "mistral":  # all layers alike
        return config.sliding_window
    sliding = types is not None and types[index] == "sliding_attention"
    return config.sliding_window if sliding else None


def _norms(layer: Any) -> Iterator[tuple[str, Any]]:
    for holder, prefix in ((layer, ""), (layer.self_attn, "self_attn.")):
        for name, module in holder.named_children():
            if name.endswith("norm"):
                yield prefix + name, module


def _check_norm(name: str, norm: Any, text: Any) -> None:
    if type(norm) is not type(text.norm):
        raise Unsupported(
            f"{name} is a {type(norm).__name__}, and the other norms are {type(text.norm).__name__}"
        )
    eps = _eps(norm)
    if eps != text.config.rms_norm_eps:
        raise Unsupported(f"{name}'s eps is {eps}, and the config's {text.config.rms_norm_eps}")


def _eps(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def state_of(text: Any) -> tuple[Any, ...]:
    """All that was read from a decoder besides modules and weights; it is read again on a change.

    Tables are identified by address and version, which needs no access to a GPU.
    """
    config, rotary = text.config, text.rotary_emb
    scale = getattr(text.embed_tokens, "embed_scale", None)
    layers = [
        (
            layer.self_attn.scaling,
            layer.self_attn.head_dim,
            getattr(layer.self_attn, "sliding_window", None),
            id(layer.mlp.act_fn),
            *((id(norm), _eps(norm)) for _, norm in _norms(layer)),
        )
        for layer in layers_of(text)
    ]
    numbers = {k: v for k, v in vars(rotary).items() if isinstance(v, (bool, int, float, str))}
    return (
        tuple(repr(getattr(config, name, None)) for name in _SETTINGS),
        _eps(text.norm),
        repr(sorted(numbers.items())),
        tuple((name, version(table)) for name, table in rotary.named_buffers()),
        version(scale) if isinstance(scale, Tensor) else scale,
        getattr(text.embed_tokens, "max_norm", None),
        tuple(layers),
    )


def version(tensor: Tensor) -> tuple[int, int, int]:
    """Identifies a tensor and its contents. (In inference mode torch counts no versions.)"""
    return id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
