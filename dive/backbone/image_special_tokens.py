"""The tokens that a processor writes for images and around them: its own settings, which it puts
into prompts as text. What is no token of the tokenizer is read there as a word ("None", say).
"""

import re
from typing import Any

from dive.errors import DiveError

_SETTING = re.compile(r"(image|img|boi|eoi|tile).*_(token|tag)$")
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


def check_image_special_tokens(processor: Any) -> None:
    """DiveError where a mark around images is not a special token of the tokenizer, is one with
    another meaning, or is another mark's."""
    tokenizer, name = processor.tokenizer, type(processor).__name__
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    if not added:
        return  # a tokenizer that does not list them
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
        # in Gemma 3's line the mark that opens an image stands for it, too
        elif value in taken and {setting, taken[value]} != {"boi_token", "image_token"}:
            problem = f"is {value!r}, as {taken[value]} is"
        if problem:
            raise DiveError(f"{name}: {setting} {problem}; wants {wants}")
        taken[value] = setting


def image_special_token_ids(processor: Any, image_token_id: int | None) -> dict[str, int]:
    """The settings that hold a mark's id (image_token_id, ...) and are not that id, with what they
    have to be. By them a processor tells which tokens are images (mm_token_type_ids).

    image_token_id: the model's own.
    """
    found = {}
    for setting in ("image_token", *_token_settings(processor)):
        own, token = f"{setting}_id", getattr(processor, setting, None)
        if own not in vars(processor) or not isinstance(token, str):
            continue
        if setting == "image_token":
            # in Gemma 3's line a prompt's mark is another token than those that images take
            wanted = None if hasattr(processor, "boi_token") else image_token_id
        else:
            wanted = processor.tokenizer.get_vocab().get(token)
        if wanted is not None and getattr(processor, own) != wanted:
            found[own] = wanted
    return found


def _token_settings(processor: Any) -> list[str]:
    """Names of the settings; not the image token's, which the model's config has."""
    return [one for one in vars(processor) if _SETTING.search(one) and one != "image_token"]
