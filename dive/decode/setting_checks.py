"""The kind of value that each setting and argument of `generate` requires, checked by name.

transformers accepts any, and fails on a wrong one later, with an error that does not name it.
Settings that are not listed here are checked by transformers itself, by name.
"""

import reprlib
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch

from dive.errors import DiveError
from dive.errors.checks import is_whole, plain

Kind = tuple[Callable[[Any], bool], str]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_)) or (is_whole(value) and value in (0, 1))


def _many(value: Any) -> list[Any] | None:
    """The entries of a sequence or tensor; None for anything else."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        value = value.tolist()
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else None


def _are_ids(value: Any) -> bool:
    many = _many(value)
    return many is not None and all(map(is_whole, many))


def _is_decay(value: Any) -> bool:
    many = _many(value)
    return many is not None and len(many) == 2 and is_whole(many[0]) and _is_number(many[1])


def _are_strings(value: Any) -> bool:
    many = [value] if isinstance(value, str) else _many(value)
    return many is not None and all(isinstance(one, str) and one for one in many)


def _from(least: int) -> Kind:
    return lambda value: is_whole(value) and value >= least, f"a whole number from {least} on"


# transformers ignores a penalty of 1, and requires a float otherwise
_PENALTY: Kind = (
    lambda value: _is_number(value) and (value == 1 or (isinstance(value, float) and value > 0)),
    "a float above 0",
)
_NUMBER: Kind = (_is_number, "a number")
_FLAG: Kind = (_is_flag, "True or False")
_ID: Kind = (is_whole, "the id of a token")
_IDS: Kind = (lambda value: is_whole(value) or _are_ids(value), "ids of tokens, one or several")
_LIST: Kind = (_are_ids, "a list of ids of tokens")
_FUNCTION: Kind = (callable, "a function")
_FUNCTIONS: Kind = (
    lambda value: isinstance(value, (list, tuple)) and all(map(callable, value)),
    "a list of functions",
)
_TENSOR: Kind = (lambda value: isinstance(value, torch.Tensor), "a tensor")

_OF_ALL: dict[Kind, tuple[str, ...]] = {
    _from(1): ("max_new_tokens", "num_beams", "num_beam_groups", "prompt_lookup_num_tokens",
               "num_assistant_tokens", "assistant_lookbehind", "target_lookbehind",
               "assistant_early_exit", "prefill_chunk_size", "max_cache_len"),
    _from(0): ("min_new_tokens", "max_length", "min_length", "no_repeat_ngram_size", "top_k",
               "encoder_no_repeat_ngram_size", "max_matching_ngram_size"),
    _NUMBER: ("temperature", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff",
              "eta_cutoff", "length_penalty", "diversity_penalty", "guidance_scale",
              "penalty_alpha", "max_time", "assistant_confidence_threshold",
              "assistant_ensemble_weight"),
    _PENALTY: ("repetition_penalty", "encoder_repetition_penalty"),
    _FLAG: ("do_sample", "use_cache", "output_attentions", "output_hidden_states", "output_scores",
            "output_logits", "return_dict_in_generate", "remove_invalid_values",
            "renormalize_logits", "low_memory", "disable_compile", "token_healing", "is_assistant",
            "use_mtp", "synced_gpus", "trust_remote_code"),
    _ID: ("pad_token_id", "bos_token_id", "forced_bos_token_id"),
    _IDS: ("eos_token_id", "decoder_start_token_id", "forced_eos_token_id"),
    _LIST: ("suppress_tokens", "begin_suppress_tokens"),
    _FUNCTION: ("prefix_allowed_tokens_fn",),
    (callable, "a tokenizer"): ("tokenizer", "assistant_tokenizer"),
    _FUNCTIONS: ("logits_processor", "stopping_criteria"),
    _TENSOR: ("negative_prompt_ids", "negative_prompt_attention_mask"),
    (_is_decay, "where it begins and its factor, as (5, 1.2)"):
        ("exponential_decay_length_penalty",),
    (_are_strings, "a string, or several, none of them empty"): ("stop_strings",),
    (lambda value: isinstance(value, str) or _is_flag(value), "True, False or 'never'"):
        ("early_stopping",),
    (lambda value: isinstance(value, Mapping) or hasattr(value, "validate"),
     "a dict or a WatermarkingConfig"): ("watermarking_config",),
    (lambda value: hasattr(value, "config") and hasattr(value, "generate"),
     "a model of transformers"): ("assistant_model",),
    (lambda value: hasattr(value, "put") and hasattr(value, "end"),
     "a streamer of transformers"): ("streamer",),
}  # fmt: skip
_KINDS = {name: kind for kind, names in _OF_ALL.items() for name in names}


def check_kinds(given: Mapping[str, Any]) -> None:
    """Raises DiveError naming the first setting with a value of the wrong kind; None is allowed."""
    for name, value in given.items():
        if value is None or name not in _KINDS:
            continue
        fits, wanted = _KINDS[name]
        if not fits(plain(value)):
            raise DiveError(f"{name} is {reprlib.repr(value)}, want {wanted}")


def check_possible(model: Any, given: Mapping[str, Any]) -> None:
    """Raises DiveError where a setting requires what this model or machine does not have."""
    cache = given.get("cache_implementation")
    if isinstance(cache, str) and "offloaded" in cache and not torch.accelerator.is_available():
        raise DiveError(
            f"cache_implementation is {cache!r}, want a GPU, from which the cache is moved to the "
            "CPU's memory, and there is none here"
        )
    config: Any = getattr(model, "config", None)
    vocabulary = getattr(config.get_text_config(), "vocab_size", None) if config else None
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        ids = _many(given.get(name)) or [given.get(name)]
        outside = [one for one in ids if one is not None and not 0 <= one < (vocabulary or one + 1)]
        if outside:
            raise DiveError(f"{name} is {outside[0]}; the model has {vocabulary} tokens, from 0 on")
    early = given.get("assistant_early_exit")
    if early is not None:
        inner = getattr(model, getattr(model, "base_model_prefix", ""), model)
        layers = getattr(inner.config, "num_hidden_layers", None)
        if layers is None:
            raise DiveError(
                f"assistant_early_exit is {early!r}, want a model whose config has "
                f"num_hidden_layers, and {type(inner.config).__name__} has none"
            )
        if early > layers:
            raise DiveError(f"assistant_early_exit is {early!r}; the model has {layers} layers")
