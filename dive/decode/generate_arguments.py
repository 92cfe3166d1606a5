"""What arguments of `generate` want a tokenizer for, done with the backbone's own."""

import copy
from collections.abc import Mapping
from typing import Any

from transformers import StoppingCriteriaList, StopStringCriteria

from dive.decode.fallback import asked_config


def with_tokenizer(model: Any, given: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The arguments of `model.generate`, where one wants a tokenizer and none is among them.

    stop_strings, wherever they are set, become a stopping criterion: transformers gives a
    `custom_generate` function no tokenizer to look for them with. tokenizer None: nobody knows one,
    and they stay as they are.
    """
    made = dict(given)
    if made.get("tokenizer") is not None:
        tokenizer = made["tokenizer"]
    if tokenizer is None:
        return made
    config = asked_config(model, given)
    if config.stop_strings:
        made.pop("tokenizer", None)
        made.pop("stop_strings", None)
        criteria: Any = made.get("stopping_criteria") or ()
        found = StopStringCriteria(tokenizer, config.stop_strings)
        made["stopping_criteria"] = StoppingCriteriaList([*criteria, found])
        told = made.get("generation_config")
        if told is not None and told.stop_strings is not None:
            made["generation_config"] = copy.deepcopy(told)
            made["generation_config"].stop_strings = None
        if model.generation_config.stop_strings is not None:
            made["stop_strings"] = None  # or transformers would take the model's own
    if config.token_healing or made.get("assistant_tokenizer") is not None:
        made["tokenizer"] = tokenizer
    return made
