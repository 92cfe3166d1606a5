"""The decoding settings of `dive.generate`: greedy, unless the caller requests otherwise.

The generation_config.json of a checkpoint proposes settings for chatting. Only token ids, forbidden
tokens and, where sampling is requested, its parameters are taken from it.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList, StopStringCriteria

from dive.decode.generate_arguments import check_names, check_settings
from dive.decode.setting_checks import check_kinds
from dive.decode.transformers_errors import refusals
from dive.decode.whole_config import WholeConfig
from dive.errors import DiveError

log = logging.getLogger(__name__)

# Taken from the model's config where sampling is requested; here None is a value, "not at all".
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff",
            "eta_cutoff")  # fmt: skip
# Tokens that a checkpoint forbids in any decoding; the caller's None lifts it.
FORBIDDEN = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
# Lengths that count the prompt -> the report's own.
LENGTHS = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}
_IDS = ("bos_token_id", "decoder_start_token_id")
_INPUTS = {"inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "pixel_values",
           "past_key_values", "cache_position", "token_type_ids", "images"}  # fmt: skip
# With these a forward holds several positions of the response, or none.
_SEVERAL_A_STEP = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp",
                   "prefill_chunk_size")  # fmt: skip


def checked(model: Any, processor: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's keyword arguments of `model.generate`, checked, without those that are None.

    A generation_config may be a dict of settings.

    Raises:
        DiveError: names the argument that is wrong.
    """
    given = {
        name: value
        for name, value in kwargs.items()
        if value is not None or name in (*SAMPLING, *FORBIDDEN)
    }
    made = sorted(given.keys() & {*_INPUTS, *(getattr(processor, "model_input_names", None) or ())})
    if made:
        raise DiveError(
            f"{', '.join(made)}: dive.generate makes the model's inputs of images and prompt; for "
            "inputs of your own call model.generate, or DecodeSession.generate"
        )
    custom = given.get("custom_generate")
    if not (custom is None or callable(custom) or isinstance(custom, str)):
        raise DiveError(f"custom_generate is {custom!r}, want a function, a hub id or a folder")
    if isinstance(given.get("generation_config"), Mapping):
        settings = _of_dict(given.pop("generation_config"))
        given = settings | given
    config = given.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise DiveError(
            f"generation_config is {config!r}, want a transformers.GenerationConfig, or its "
            "settings as a dict"
        )
    _check_lengths(given)
    check_names(model, given)
    if requested_settings(given).get("token_healing"):
        raise DiveError("token_healing would rewrite the end of the chat template")
    if requested_settings(given).get("is_assistant"):
        raise DiveError(
            "is_assistant is True; transformers sets it on the model that proposes tokens: give "
            "that model as assistant_model"
        )
    count = requested_settings(given).get("num_return_sequences")
    if count not in (None, 1):
        raise DiveError(f"num_return_sequences is {count!r}: one study has one report")
    if given.get("synced_gpus") and not torch.distributed.is_initialized():
        raise DiveError(
            "synced_gpus: processes decode in step where torch.distributed has been initialised, "
            "and here it has not"
        )
    return given


def _of_dict(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a generation_config that is a dict: as if each had been given by name."""
    check_settings(settings, ())
    check_kinds(settings)
    with refusals(settings):
        GenerationConfig(**settings)
    return {n: v for n, v in settings.items() if v is not None or n in (*SAMPLING, *FORBIDDEN)}


def _check_lengths(given: Mapping[str, Any]) -> None:
    """Raises DiveError for a requested length that counts the prompt, which dive.generate makes.

    In a generation_config it is ignored where the report's own length is given too, as by
    transformers.
    """
    requested = requested_settings(given)
    for name, own in LENGTHS.items():
        if given.get(name):
            raise DiveError(f"{name} counts the prompt too; give {own}, the report's own")
        if not requested.get(name):
            continue
        if own not in requested:
            raise DiveError(
                f"generation_config has {name}={requested[name]}, which counts the prompt too; "
                f"give {own}, the report's own"
            )
        log.warning("%s=%s holds, and %s=%s of the generation_config does not", own, requested[own],
                    name, requested[name])  # fmt: skip


def requested_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The requested settings and arguments by name, of a generation_config and besides it."""
    config = given.get("generation_config")
    settings = {
        name: value
        for name, value in ({} if config is None else vars(config)).items()
        if value is not None and not name.startswith("_") and name != "transformers_version"
    }
    return {**settings, **{k: v for k, v in given.items() if k != "generation_config"}}


def check_steps(given: Mapping[str, Any]) -> None:
    """Raises DiveError for several tokens per step, of which an adapter would steer only one."""
    requested = requested_settings(given)
    for name in _SEVERAL_A_STEP:
        if requested.get(name) not in (None, False):
            raise DiveError(f'{name} does not go with an adapter that has positions="response"')


def config_of(
    model: Any, given: Mapping[str, Any], eos_token_ids: list[int], pad_token_id: int
) -> WholeConfig:
    """The requested decoding, with greedy search as the default.

    Raises:
        DiveError: transformers refuses a setting; with its message.
    """
    own = getattr(model, "generation_config", None) or GenerationConfig()
    config = WholeConfig()
    given_config = given.get("generation_config")
    extra = {} if given_config is None else vars(given_config).keys() - vars(config).keys()
    names = {*vars(config), *(name for name in extra if not name.startswith("_"))}
    requested = {name: value for name, value in requested_settings(given).items() if name in names}
    for name in (*LENGTHS, "stop_strings"):  # the report's own hold; among the criteria
        requested.pop(name, None)
    if "eos_token_id" not in given and given_config is not None and _is_copy(given_config, own):
        requested.pop("eos_token_id", None)
    taken = [*_IDS, *FORBIDDEN, *(SAMPLING if requested.get("do_sample") else ())]
    settings = {name: getattr(own, name, None) for name in taken}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings |= {"eos_token_id": eos_token_ids, "pad_token_id": pad_token_id, **requested}
    settings["eos_token_id"] = _ids(settings["eos_token_id"])
    config.note_requested(requested)
    with refusals({"generation_config": given_config, **requested}):
        config.update(False, True, **copy.deepcopy(settings))
    return config


def _is_copy(given: GenerationConfig, own: GenerationConfig) -> bool:
    """Whether a given config has the model's own end tokens because it was loaded from its file:
    then the caller requested none. One that the caller wrote was not loaded from a file."""
    loaded = getattr(given, "_original_object_hash", None) is not None
    same = _ids(given.eos_token_id) == _ids(own.eos_token_id)
    return given is own or (loaded and same)


def _ids(given: Any) -> list[int] | None:
    """A list of token ids, of one, several, a tensor or None."""
    if isinstance(given, torch.Tensor):
        given = given.tolist()
    if given is None:
        return None
    return list(given) if isinstance(given, (list, tuple, set, frozenset)) else [given]


def arguments_of(given: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The arguments of `model.generate` besides its config.

    stop_strings become a stopping criterion; tokenizer: the backbone's, where none is given.
    """
    known = vars(GenerationConfig())
    others = {k: v for k, v in given.items() if k not in known and k != "generation_config"}
    if "assistant_tokenizer" in others:
        others.setdefault("tokenizer", tokenizer)
    strings = requested_settings(given).get("stop_strings")
    if strings:
        # transformers passes no tokenizer to a custom_generate function
        with refusals({"stop_strings": strings}):
            criterion = StopStringCriteria(others.pop("tokenizer", tokenizer), strings)
        others["stopping_criteria"] = StoppingCriteriaList(
            [*others.get("stopping_criteria", ()), criterion]
        )
    return others


def log_forbidden_tokens(model: Any, given: Mapping[str, Any]) -> None:
    """Logs the settings of the model's own generation_config that forbid tokens, and hold."""
    own = getattr(model, "generation_config", None)
    requested = requested_settings(given)
    held = [name for name in FORBIDDEN if getattr(own, name, None) and name not in requested]
    if held:
        log.info("the model's generation_config forbids tokens, and they are: %s", ", ".join(held))
