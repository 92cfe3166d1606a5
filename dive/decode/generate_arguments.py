"""The arguments of a call of `generate`: by name, checked, and with a tokenizer."""

import copy
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers import GenerationConfig, GenerationMixin, StoppingCriteriaList, StopStringCriteria
from transformers.cache_utils import Cache

from dive.decode.setting_checks import check_kinds, check_possible
from dive.decode.transformers_errors import refusals
from dive.errors import DiveError

# transformers passes none of these to a custom_generate function, or takes one function alone
KEYWORDS = ("assistant_model", "assistant_tokenizer", "tokenizer", "custom_generate")


def given_arguments(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tokenizer: Any
) -> dict[str, Any]:
    """The checked arguments, by name, for a call of `model.generate(*args, **kwargs)`.

    tokenizer: the backbone's, for settings that need one; None where it is not known.

    Raises:
        DiveError: an unknown name, or a value of no use.
    """
    given = _by_name(model, args, kwargs)
    check_names(model, given)
    with refusals(given):
        return _with_tokenizer(model, given, tokenizer)


def _by_name(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `model.generate(*args, **kwargs)` by their names.

    custom_generate=None counts as not given.
    """
    parameters = inspect.signature(model.generate).parameters.values()
    if any(one.kind == one.VAR_POSITIONAL for one in parameters):  # a wrapper that passes them on
        parameters = inspect.signature(GenerationMixin.generate.__get__(model)).parameters.values()
    names = [one.name for one in parameters if one.kind == one.POSITIONAL_OR_KEYWORD]
    if len(args) > len(names):
        raise DiveError(f"generate takes {len(names)} arguments by position, got {len(args)}")
    given = dict(zip(names, args, strict=False))
    twice = sorted(given.keys() & kwargs.keys())
    if twice:
        raise DiveError(f"{', '.join(twice)}: given by position and by name")
    given |= kwargs
    config = given.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise DiveError(f"generation_config is {config!r}, want a transformers.GenerationConfig")
    if given.get("custom_generate", "") is None:
        del given["custom_generate"]
    return given


def check_names(model: Any, kwargs: dict[str, Any]) -> None:
    """Raises DiveError naming arguments that `model.generate(**kwargs)` does not know, and settings
    of its generation_config that nothing reads, or whose value is of no use."""
    config = kwargs.get("generation_config")
    for settings in ({} if config is None else vars(config), kwargs):
        check_kinds(settings)
        check_possible(model, settings)
    if kwargs.get("custom_generate") is not None:
        return  # it may have arguments of its own
    if config is not None:
        check_settings(vars(config), vars(model.generation_config))
    known = vars(GenerationConfig())
    own = {*inspect.signature(GenerationMixin.generate).parameters, *KEYWORDS, "trust_remote_code"}
    others = {
        name: value
        for name, value in kwargs.items()
        # the name of the cache argument differs between versions of transformers
        if name not in own and name not in known and not isinstance(value, Cache)
    }
    unknown = [name for name, value in others.items() if not _is_input(model, name, value)]
    if unknown:
        raise DiveError(
            f"{', '.join(unknown)}: no argument of generate, no setting of its GenerationConfig, "
            f"and no input of {type(model).__name__}"
        )


def check_settings(settings: Mapping[str, Any], own: Collection[str]) -> None:
    """Raises DiveError naming unknown settings of a generation_config; transformers accepts any.

    Those of the model's own checkpoint (`own`) are allowed: its own code may read them.
    """
    known = {*vars(GenerationConfig()), *own, "transformers_version"}
    unknown = [
        str(name) for name in settings if name not in known and not str(name).startswith("_")
    ]
    if unknown:
        raise DiveError(
            f"generation_config has {', '.join(unknown)}, which is no setting of transformers' "
            "GenerationConfig"
        )


def _is_input(model: Any, name: str, value: Any) -> bool:
    try:
        model._validate_model_kwargs({name: value})
    except ValueError:
        return False
    return True


def requested_config(model: Any, kwargs: Mapping[str, Any]) -> GenerationConfig:
    """The config by which `model.generate(**kwargs)` decodes, merged as transformers merges it."""
    given = kwargs.get("generation_config")
    config = GenerationConfig() if given is None else copy.deepcopy(given)
    own = model.generation_config.to_dict()
    config.update(**own, defaults_only=True, allow_custom_entries=True)
    config.update(**{k: v for k, v in kwargs.items() if k in vars(config)})
    return config


def _with_tokenizer(model: Any, given: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The arguments of `model.generate`, with the tokenizer where one of them needs it.

    stop_strings, wherever they are set, become a stopping criterion, as transformers passes no
    tokenizer to a `custom_generate` function. tokenizer None: the arguments stay as they are.
    """
    made = dict(given)
    if made.get("tokenizer") is not None:
        tokenizer = made["tokenizer"]
    if tokenizer is None:
        return made
    config = requested_config(model, given)
    if config.stop_strings:
        made.pop("tokenizer", None)
        made.pop("stop_strings", None)
        criteria: Any = made.get("stopping_criteria") or ()
        found = StopStringCriteria(tokenizer, config.stop_strings)
        made["stopping_criteria"] = StoppingCriteriaList([*criteria, found])
        own = made.get("generation_config")
        if own is not None and own.stop_strings is not None:
            made["generation_config"] = copy.deepcopy(own)
            made["generation_config"].stop_strings = None
        if model.generation_config.stop_strings is not None:
            made["stop_strings"] = None  # or transformers would take the model's own
    if config.token_healing or made.get("assistant_tokenizer") is not None:
        made["tokenizer"] = tokenizer
    return made
