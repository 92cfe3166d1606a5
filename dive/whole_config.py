"""A generation config that is complete: transformers fills nothing in from the model's own."""

from typing import Any

from transformers import GenerationConfig

# transformers makes these of max_new_tokens and min_new_tokens
_OPEN = ("max_length", "min_length")


class WholeConfig(GenerationConfig):  # type: ignore[misc]
    """transformers' defaults, greedy search, until `update` says otherwise.

    `generate` fills what is None from the generation_config of the model, then from its defaults.
    Here None stays, and of the model's only entries that transformers itself does not know are
    taken, which its own code may read.
    """

    def __init__(self, **settings: Any) -> None:
        defaults = GenerationConfig._get_default_generation_params()
        super().__init__(**{k: v for k, v in defaults.items() if k not in _OPEN})
        if settings:
            self.update(**settings)

    def update(
        self, defaults_only: bool = False, allow_custom_entries: bool = False, **settings: Any
    ) -> Any:
        if defaults_only:
            taken = _OPEN if not allow_custom_entries else ()
            settings = {k: v for k, v in settings.items() if k in taken or not hasattr(self, k)}
        return super().update(defaults_only, allow_custom_entries, **settings)
