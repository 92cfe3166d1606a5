"""A prompt's KV cache, as transformers' model wrote it, from which the engine decodes on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from dive.backbone.kv_cache import filled_layers


class PromptCache(NamedTuple):
    """The KV cache of a prompt; `inputs` identifies the prompt."""

    inputs: Mapping[str, Any]
    layers: Any  # of transformers' cache
    length: int  # tokens in it
    position: int  # rotary, of the next token


def last_position(inputs: Mapping[str, Any]) -> Tensor | None:
    """The rotary position of each row's last token [B], as prepared for the model's forward."""
    positions = inputs.get("position_ids")
    if positions is None:
        return None
    # of several coordinates (Qwen-VL) the last tokens' are equal: text follows every image
    last = positions if positions.dim() == 2 else positions[-1]
    return last[:, -1]


def prompt_cache(
    given: Mapping[str, Any], inputs: Mapping[str, Any], outputs: Any, length: int
) -> PromptCache:
    """The cache of one prompt, `given` for generate, by the inputs and outputs of its forward."""
    last = last_position(inputs)
    position = length if last is None else int(last[0]) + 1
    return PromptCache(given, filled_layers(outputs, length), length, position)


def read_but_last(
    model: Any, given: Mapping[str, Any], prompt: Tensor, kwargs: Mapping[str, Any]
) -> PromptCache:
    """Runs the prefill of a prompt [1, T] without its last token.

    kwargs: what transformers made of `given` besides its ids.
    """
    length = prompt.shape[1]
    inputs = model.prepare_inputs_for_generation(prompt, is_first_iteration=True, **kwargs)
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            continue
        if name == "position_ids":
            inputs[name] = value[..., :-1]
        elif value.shape[:2] == (1, length):
            inputs[name] = value[:, :-1]
    return prompt_cache(given, inputs, model(**inputs, return_dict=True), length - 1)
