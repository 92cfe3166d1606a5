"""Special tokens that a processor writes for images and around them, by its own settings.

They go into prompts as text. One that the tokenizer does not have is read as a word ("None", say).
"""

import re
from typing import Any

from dive.errors import DiveError

_SETTING = re.compile(r"(image|img|boi|eoi|tile).*_(token|tag)$")
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


def check_image_special_tokens(processor: Any) -> None:
    """Raise DiveError where such a setting is not a special token of the tokenizer.

    Nor may it be a special token with another meaning, or that of another setting.
    """
    tokenizer, name = processor.tokenizer, type(processor).__name__
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    if not added:
        return  # a tokenizer that does not list its special tokens
    roles = {str(getattr(tokenizer, role, None)): role for role in _ROLES}
    taken = {str(getattr(processor, "image_token", "")): "image_token"}
    for setting in _token_settings(processor):
        value = getattr(processor, setting)
        own = getattr(tokenizer, setting, None)
        wants = f"{own!r}, which is the tokenizer's" if isinstance(own, str) else ""
        wants = wants or "a special token of the tokenizer"
        problem = ""
        other = isinstance(own, str) and own not in ("", value)
        if not isinstance(value, str) or value not in added or other:
            problem = f"is {value!r}"
        elif value in roles:
            problem = f"is {value!r}, the tokenizer's {roles[value]}"
        # in the Gemma 3 line the token that opens an image stands for it, too
        elif value in taken and {setting, taken[value]} != {"boi_token", "image_token"}:
            problem = f"is {value!r}, as {taken[value]} is"
        if problem:
            raise DiveError(f"{name}: {setting} {problem}, want {wants}")
        taken[value] = setting


def image_special_token_ids(processor: Any, image_token_id: int | None) -> dict[str, int]:
    """Wrong settings for ids of special tokens (image_token_id, ...), with the right value.

    A processor finds image tokens by them (mm_token_type_ids).

    image_token_id: the model's own.
    """
    found = {}
    for setting in ("image_token", *_token_settings(processor)):
        own, token = f"{setting}_id", getattr(processor, setting, None)
        if own not in vars(processor) or not isinstance(token, str):
            continue
        if setting == "image_token":
            # in the Gemma 3 line the placeholder in a prompt is another token than those of images
            wanted = None if hasattr(processor, "boi_token") else image_token_id
        else:
            wanted = processor.tokenizer.get_vocab().get(token)
        if wanted is not None and getattr(processor, own) != wanted:
            found[own] = wanted
    return found


def _token_settings(processor: Any) -> list[str]:
    """Names of the settings, without that of the image token, which the model's config has."""
    return [one for one in vars(processor) if _SETTING.search(one) and one != "image_token"]
