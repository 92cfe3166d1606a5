"""A complete generation config, into which transformers fills nothing from the model's own."""

from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig

_LENGTHS = ("max_length", "min_length")  # these count the prompt; max_new_tokens is given instead


class WholeConfig(GenerationConfig):  # type: ignore[misc]
    """transformers' defaults, greedy search, changed by `update` alone.

    `generate` replaces None by the model's generation_config, then by its defaults. Here None
    stays, and of the model's config only entries that transformers does not know are taken, which
    its own code may read. max_new_tokens must be given; min_length, which must look as if nobody
    gave it, becomes 0 when `generate` fills in its defaults.
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
                settings["min_length"] = 0  # max_length is made of max_new_tokens
        return super().update(defaults_only, allow_custom_entries, **settings)

    def note_requested(self, names: Iterable[str]) -> None:
        """Stores the names of the caller's own settings."""
        self._names = tuple(names)

    def requested(self) -> dict[str, Any]:
        """The caller's own settings."""
        return {name: getattr(self, name, None) for name in self._names}
