"""Prompts: studies and demonstrations as token ids, by a processor and its chat template."""

from typing import TYPE_CHECKING

from dive import face

if TYPE_CHECKING:
    from dive.prompting.prompter import DEFAULT_PROMPTS as DEFAULT_PROMPTS
    from dive.prompting.prompter import Prompter as Prompter
    from dive.prompting.prompter import Response as Response

__all__ = ["DEFAULT_PROMPTS", "Prompter", "Response"]

# `template_process` is a program of its own that runs without torch
__getattr__ = face(__name__, dict.fromkeys(__all__, "prompter"))
