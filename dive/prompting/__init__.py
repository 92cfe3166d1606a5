"""Prompts: studies and demonstrations, through a processor and its chat template, to token ids."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dive.prompting.prompter import DEFAULT_PROMPTS as DEFAULT_PROMPTS
    from dive.prompting.prompter import Prompter as Prompter
    from dive.prompting.prompter import Response as Response

__all__ = ["DEFAULT_PROMPTS", "Prompter", "Response"]


def __getattr__(name: str) -> object:
    """`template_process` is a program of its own that does without torch, so nothing is imported
    here before it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'dive.prompting' has no attribute {name!r}")
    from dive.prompting import prompter

    value = globals()[name] = getattr(prompter, name)
    return value
