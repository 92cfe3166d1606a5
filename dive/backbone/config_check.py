"""Checks of settings in a backbone's files that load, and fail only when the model runs."""

from numbers import Real
from typing import Any, TypeGuard

from dive.backbone.structure import text_config
from dive.errors import DiveError


def check_settings(source: str, model: Any, tokenizer: Any) -> None:
    """Raise DiveError for such a setting, with its file, its value and the value it needs."""

    def wrong(file: str, name: str, value: Any, wanted: str) -> DiveError:
        return DiveError(f"{source}: {name} in {file} is {value!r}, want {wanted}")

    config = model.config
    vision = getattr(config, "vision_config", None)
    if vision is not None and hasattr(config, "image_token_id"):
        token = config.image_token_id
        if not _whole(token) or token < 0:
            raise wrong("config.json", "image_token_id", token, "the id of the image token")
    layers = getattr(vision, "num_hidden_layers", None)
    if _whole(layers):
        chosen = getattr(config, "vision_feature_layer", None)
        for layer in chosen if isinstance(chosen, (list, tuple)) else [chosen]:
            # the embeddings are hidden state 0
            if layer is not None and not (_whole(layer) and -layers - 1 <= layer <= layers):
                raise wrong(
                    "config.json", "vision_feature_layer", chosen,
                    f"layers from {-layers - 1} to {layers}: the vision tower has {layers}",
                )  # fmt: skip
    strategy = getattr(config, "vision_feature_select_strategy", None)
    if config.model_type == "internvl" and strategy != "default":
        # it merges the patches two by two, and the class token is no patch
        raise wrong("config.json", "vision_feature_select_strategy", strategy, "'default'")
    positions = getattr(text_config(model), "max_position_embeddings", None)
    if _whole(positions) and positions < 1:
        raise wrong("config.json", "max_position_embeddings", positions, "a whole number >= 1")
    embedded = model.get_input_embeddings().weight.shape[0]
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    for end in ends if isinstance(ends, (list, tuple)) else [ends]:
        if end is not None and not (_whole(end) and 0 <= end < embedded):
            raise wrong(
                "generation_config.json",
                "eos_token_id",
                ends,
                f"token ids from 0 to {embedded - 1}",
            )
    longest = getattr(tokenizer, "model_max_length", None)
    number = isinstance(longest, Real) and not isinstance(longest, bool)
    if longest is not None and not (number and longest >= 1):
        raise wrong("tokenizer_config.json", "model_max_length", longest, "a number >= 1")


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
