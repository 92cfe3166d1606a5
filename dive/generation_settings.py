"""How `dive.generate` decodes: greedily, but for what its caller asks for.

The generation_config.json of a checkpoint proposes how to chat with it. Of that only the tokens are
taken: their ids, those that must not be written, and, where sampling is asked for, how to sample.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList, StopStringCriteria

from dive.decode_limits import check_names
from dive.errors import DiveError
from dive.refusals import refusals
from dive.whole_config import WholeConfig

log = logging.getLogger(__name__)

# The model's proposal where sampling is asked for; here None is a value, "not at all".
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff",
            "eta_cutoff")  # fmt: skip
# Tokens that a checkpoint must not write, however it decodes; None of the caller's lifts it.
FORBIDDEN = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
_IDS = ("bos_token_id", "decoder_start_token_id")
_INPUTS = {"inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "pixel_values",
           "past_key_values", "cache_position", "token_type_ids", "images"}  # fmt: skip
# Here a forward's last position is not all that it holds of the response, or is none of it.
_SEVERAL_A_STEP = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp",
                   "prefill_chunk_size")  # fmt: skip


def checked(model: Any, processor: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's keyword arguments of `model.generate`, without those that say nothing.

    A generation_config may be a dict of settings. DiveError that names what is wrong.
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
        raise DiveError(f"custom_generate is {custom!r}; wants a function, a hub id or a folder")
    if "max_length" in given:
        raise DiveError("max_length counts the prompt too; give max_new_tokens, the report's own")
    if "generation_config" in given:
        given["generation_config"] = _as_config(given["generation_config"])
    check_names(model, given)
    if asked_for(given).get("token_healing"):
        raise DiveError("token_healing rewrites the prompt's end, which is the template's here")
    count = asked_for(given).get("num_return_sequences")
    if count not in (None, 1):
        raise DiveError(f"num_return_sequences is {count!r}: one study has one report")
    if given.get("synced_gpus") and not torch.distributed.is_initialized():
        raise DiveError(
            "synced_gpus: processes decode in step where torch.distributed has been initialised, "
            "and here it has not"
        )
    return given


def _as_config(given: Any) -> GenerationConfig:
    if isinstance(given, GenerationConfig):
        return given
    if not isinstance(given, Mapping):
        raise DiveError(
            f"generation_config is {given!r}; wants a transformers.GenerationConfig, or its "
            "settings as a dict"
        )
    known = vars(GenerationConfig())
    unknown = [str(name) for name in given if name not in known]
    if unknown:
        raise DiveError(
            f"generation_config has {', '.join(unknown)}, which is no setting of transformers' "
            "GenerationConfig"
        )
    with refusals():
        return GenerationConfig(**given)


def asked_for(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings and arguments by name, of a generation_config and of what is given beside it."""
    config = given.get("generation_config")
    settings = {
        name: value
        for name, value in ({} if config is None else vars(config)).items()
        if value is not None and not name.startswith("_") and name != "transformers_version"
    }
    return {**settings, **{k: v for k, v in given.items() if k != "generation_config"}}


def check_steps(given: Mapping[str, Any]) -> None:
    """DiveError where several tokens a step are asked for, and one is what an adapter steers."""
    asked = asked_for(given)
    for name in _SEVERAL_A_STEP:
        if asked.get(name) not in (None, False):
            raise DiveError(f'{name} does not go with an adapter that has positions="response"')


def config_of(
    model: Any, given: Mapping[str, Any], eos_token_ids: list[int], pad_token_id: int
) -> WholeConfig:
    """The decoding that was asked for, over greedy search.

    Raises DiveError, with transformers' words, where it holds a setting to be wrong.
    """
    own = getattr(model, "generation_config", None) or GenerationConfig()
    config = WholeConfig()
    asked = {name: value for name, value in asked_for(given).items() if name in vars(config)}
    for name in ("max_length", "stop_strings"):  # max_new_tokens; among the criteria
        asked.pop(name, None)
    # a copy of the model's own has its ids too, and no more is meant by it
    beside = "eos_token_id" not in given and "generation_config" in given
    if beside and _ids(asked.get("eos_token_id")) == _ids(own.eos_token_id):
        asked.pop("eos_token_id", None)
    taken = [*_IDS, *FORBIDDEN, *(SAMPLING if asked.get("do_sample") else ())]
    settings = {name: getattr(own, name, None) for name in taken}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings |= {"eos_token_id": eos_token_ids, "pad_token_id": pad_token_id, **asked}
    settings["eos_token_id"] = _ids(settings["eos_token_id"])
    with refusals():
        config.update(False, False, **copy.deepcopy(settings))
    return config


def _ids(given: Any) -> list[int] | None:
    """Ids of tokens, of which there may be one, several, or a tensor."""
    if isinstance(given, torch.Tensor):
        given = given.tolist()
    if given is None:
        return None
    return list(given) if isinstance(given, (list, tuple, set, frozenset)) else [given]


def arguments_of(given: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """What goes to `model.generate` beside a config.

    stop_strings become a criterion, and the tokenizer is the backbone's where none is given.
    """
    known = vars(GenerationConfig())
    others = {k: v for k, v in given.items() if k not in known and k != "generation_config"}
    if "assistant_tokenizer" in others:
        others.setdefault("tokenizer", tokenizer)
    strings = asked_for(given).get("stop_strings")
    if strings:
        # transformers gives a custom_generate function no tokenizer to look for them with
        with refusals():
            criterion = StopStringCriteria(others.pop("tokenizer", tokenizer), strings)
        others["stopping_criteria"] = StoppingCriteriaList(
            [*others.get("stopping_criteria", ()), criterion]
        )
    return others


def tell_forbidden(model: Any, given: Mapping[str, Any]) -> None:
    """Says which settings of the model's own generation_config hold though nobody gave them."""
    own = getattr(model, "generation_config", None)
    asked = asked_for(given)
    held = [name for name in FORBIDDEN if getattr(own, name, None) and name not in asked]
    if held:
        log.info("the model's generation_config forbids tokens, and they are: %s", ", ".join(held))
