"""What a tokenizer and a model's files say about themselves, that prompts have to respect."""

import re
from typing import Any

from dive.structure import text_config


def generation_eos(model: Any) -> list[int]:
    """The ids at which a model's generation_config stops."""
    config = getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None)
    if eos is None:
        return []
    return [int(index) for index in eos] if isinstance(eos, (list, tuple)) else [int(eos)]


def context_of(model: Any, tokenizer: Any) -> tuple[int | None, str]:
    """Tokens that a prompt may have with its report, and where the number is from."""
    positions = getattr(text_config(model), "max_position_embeddings", None)
    own = getattr(tokenizer, "model_max_length", None)
    # where a tokenizer does not say, transformers puts 1e30
    if isinstance(own, int) and 0 < own < (10**9 if positions is None else positions):
        more = "" if positions is None else f", though its decoder has {positions} positions"
        return own, f" by its tokenizer's model_max_length{more}"
    return positions, ""


def special_tokens(tokenizer: Any, image: int | None) -> re.Pattern[str]:
    """Matches the special tokens as they are written. Not those of one or two characters: a "!" for
    padding is a word of reports, too; nor the one for what is unknown, which means nothing."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    names = {str(token) for token in added.values() if getattr(token, "special", False)}
    names |= set(tokenizer.all_special_tokens)
    if image is not None:
        names.add(str(tokenizer.convert_ids_to_tokens(image)))
    names = {name for name in names if len(name.strip()) > 2 and not name.isalnum()}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


def appended_by(tokenizer: Any) -> int:
    """How many special tokens the tokenizer puts behind a text; a prompt must not end in them."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    special = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(special) - len(plain) + 1):
        if special[start : start + len(plain)] == plain:
            return len(special) - len(plain) - start
    return 0
