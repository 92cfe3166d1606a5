"""A generation config that is complete: transformers fills nothing in from the model's own."""

from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig

_LENGTHS = ("max_length", "min_length")  # with the prompt; max_new_tokens is what counts


class WholeConfig(GenerationConfig):  # type: ignore[misc]
    """transformers' defaults, greedy search, until `update` says otherwise.

    `generate` fills what is None from the generation_config of the model, then from its defaults.
    Here None stays, and of the model's only entries that transformers itself does not know are
    taken, which its own code may read. max_new_tokens is to be given; min_length, of which
    `generate` wants to know that nobody gave it, is 0 once it asks for defaults.
    """

    _names: tuple[str, ...] = ()

    def __init__(self, **settings: Any) -> None:
        defaults = GenerationConfig._get_default_generation_params()
        super().__init__(**{k: v for k, v in defaults.items() if k not in _LENGTHS})
        if settings:
            self.update(**settings)

    def update(
        self, defaults_only: bool = False, allow_custom_entries: bool = False, **settings: Any
    ) -> Any:
        if defaults_only:
            settings = {k: v for k, v in settings.items() if not hasattr(self, k)}
            if self.min_length is None:
                settings["min_length"] = 0  # max_length it makes of max_new_tokens
        return super().update(defaults_only, allow_custom_entries, **settings)

    def note_requested(self, names: Iterable[str]) -> None:
        """Keeps which settings are the caller's."""
        self._names = tuple(names)

    def requested(self) -> dict[str, Any]:
        """The settings that are the caller's."""
        return {name: getattr(self, name, None) for name in self._names}
