"""Properties of tokenizers and of models' files that prompts depend on."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dive.backbone.structure import text_config, unwrap
from dive.errors import DiveError


def check_tokenizer(processor: Any, tokenizer: Any) -> None:
    """Raise DiveError where a processor has no tokenizer."""
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise DiveError(
            f"{type(processor).__name__} has no tokenizer, want the model's processor, which has "
            "an image processor and a tokenizer (for a text model: the tokenizer)"
        )


class Embedded:
    """The ids that a model's input embedding has a row for."""

    def __init__(self, model: Any, image_token_id: int | None) -> None:
        embeddings: Any = unwrap(model).get_input_embeddings()
        rows = getattr(embeddings, "num_embeddings", None)
        self.rows = int(embeddings.weight.shape[0]) if rows is None else int(rows)
        self._image = image_token_id  # the PaliGemma line embeds another token instead

    def __contains__(self, index: int) -> bool:
        return 0 <= index < self.rows or index == self._image

    def check(self, ids: Tensor | Sequence[int], what: str) -> None:
        """Raise DiveError for an id without a row, as of a token added to the tokenizer alone."""
        if isinstance(ids, Tensor):
            ids = ids[(ids >= self.rows) | (ids < 0)].tolist()
        beyond = next((index for index in ids if index not in self), None)
        if beyond is not None:
            raise DiveError(
                f"{what} has a token with the id {beyond}, and the model's embedding has "
                f"{self.rows} rows, want the model's own tokenizer (or resize_token_embeddings, "
                "where tokens were added to it)"
            )


def generation_eos(model: Any) -> list[int]:
    """The ids at which a model's generation_config stops."""
    config = getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None)
    if eos is None:
        return []
    return [int(index) for index in eos] if isinstance(eos, (list, tuple)) else [int(eos)]


def context_of(model: Any, tokenizer: Any) -> tuple[int | None, str]:
    """The limit of tokens of a prompt with its report, and the source of that limit in words."""
    positions = getattr(text_config(model), "max_position_embeddings", None)
    own = getattr(tokenizer, "model_max_length", None)
    # transformers has 1e30 where a tokenizer has no limit
    if isinstance(own, int) and 0 < own < (10**9 if positions is None else positions):
        more = "" if positions is None else f", though its decoder has {positions} positions"
        return own, f" by its tokenizer's model_max_length{more}"
    return positions, ""


def special_tokens(tokenizer: Any, image: int | None) -> re.Pattern[str]:
    """A pattern of the special tokens as they are written.

    Without those of one or two characters, as a "!" for padding also stands in reports, and without
    plain words.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    names = {str(token) for token in added.values() if getattr(token, "special", False)}
    names |= set(tokenizer.all_special_tokens)
    if image is not None:
        names.add(str(tokenizer.convert_ids_to_tokens(image)))
    names = {name for name in names if len(name.strip()) > 2 and not name.isalnum()}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


def appended_by(tokenizer: Any) -> int:
    """The number of special tokens that the tokenizer appends; a prompt must not end in them."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    special = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(special) - len(plain) + 1):
        if special[start : start + len(plain)] == plain:
            return len(special) - len(plain) - start
    return 0
