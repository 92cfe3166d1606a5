"""The settings of `dive.generate` as vLLM's SamplingParams; what vLLM does not have is refused."""

from collections.abc import Mapping
from typing import Any

from transformers.generation.configuration_utils import GenerationMode

from dive.backbone.load import Backbone
from dive.decode.whole_config import WholeConfig
from dive.errors import DiveError
from dive.generation.settings import requested_settings
from dive.prompting.tokenizer import generation_eos
from dive.vllm.installed import OTHERS

# settings that become arguments of SamplingParams, or that need no translation
_TRANSLATED = (
    "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p",
    "repetition_penalty", "eos_token_id", "pad_token_id", "bos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids",
)  # fmt: skip
# vLLM has none of these; a checkpoint may set them for sampling
_SAMPLING_ONLY = {"top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


def check_settings(mode: GenerationMode, given: Mapping[str, Any]) -> None:
    """Raise DiveError for a requested setting of decoding that vLLM does not have.

    mode: what the settings ask for. given: the keyword arguments of `dive.generate`, checked.
    """
    defaults = vars(WholeConfig())
    for name, value in requested_settings(given).items():
        plain = value is None or isinstance(value, (bool, int, float, str))
        usual = plain and (value is None or value == defaults.get(name))
        if name not in _TRANSLATED and not usual:
            raise DiveError(f"{name}: vLLM has no such setting; {OTHERS}")
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise DiveError(f"vLLM does not decode by {mode.value}; {OTHERS}")


def own_ends(backbone: Backbone) -> set[int]:
    """The ids that vLLM takes for ends by the model's files, whatever a request says."""
    found = [*generation_eos(backbone.model), backbone.tokenizer.eos_token_id]
    return {int(one) for one in found if one is not None}


def sampling_arguments(config: Any, ends_of_files: set[int], seed: int | None) -> dict[str, Any]:
    """The arguments of SamplingParams for one report.

    The tokens that end a report are those of `config` alone (ignore_eos, for those that vLLM would
    take from the model's files). The log-probability of the most likely token comes with each
    token, as unusable logits (`dive.decode.usable_logits`) show in it.

    config: of `ReportWriter.config`, with max_new_tokens. ends_of_files: `own_ends`. seed: of this
    report; None where decoding is greedy.

    Raises:
        DiveError: a setting of the model's generation_config, or a combination, that vLLM does not
            have.
    """
    ends = list(config.eos_token_id or [])
    made: dict[str, Any] = {
        "max_tokens": config.max_new_tokens,
        "stop_token_ids": ends,
        "ignore_eos": True,
        "detokenize": False,
        "logprobs": 1,
        "temperature": 0.0,
        "repetition_penalty": float(config.repetition_penalty or 1.0),
    }
    if config.min_new_tokens:
        if not ends_of_files <= set(ends):  # vLLM forbids them until then, too
            raise DiveError(
                "min_new_tokens: vLLM would also forbid the end tokens of the model's files "
                f"({sorted(ends_of_files - set(ends))}) until then; {OTHERS}"
            )
        made["min_tokens"] = config.min_new_tokens
    if config.do_sample:
        made |= _sampling(config) | {"seed": seed}
    forbidden = _forbidden(config, ends)
    if forbidden:
        made["logit_bias"] = dict.fromkeys(forbidden, float("-inf"))
    return made


def _sampling(config: Any) -> dict[str, Any]:
    for name, off in _SAMPLING_ONLY.items():
        value = getattr(config, name, None)
        if value is not None and value != off:
            raise DiveError(
                f"{name} is {value!r}, and vLLM has no such setting: give {name}=None; {OTHERS}"
            )
    if config.min_p and config.top_p not in (None, 1.0):
        raise DiveError(
            "min_p and top_p: vLLM applies them in another order than transformers, so that the "
            f"two together leave other tokens: give one as None; {OTHERS}"
        )
    return {
        "temperature": 1.0 if config.temperature is None else float(config.temperature),
        "top_k": int(config.top_k or 0),
        "top_p": 1.0 if config.top_p is None else float(config.top_p),
        "min_p": float(config.min_p or 0.0),
    }


def _forbidden(config: Any, ends: list[int]) -> list[int]:
    """The tokens that are never written."""
    if config.begin_suppress_tokens:
        raise DiveError(
            "begin_suppress_tokens: vLLM cannot forbid tokens for the first token alone: give "
            f"begin_suppress_tokens=None to lift them; {OTHERS}"
        )
    found = [int(token) for token in config.suppress_tokens or ()]
    for words in config.bad_words_ids or ():
        if len(words) > 1:
            raise DiveError(
                f"bad_words_ids has {len(words)} tokens in an entry, and vLLM forbids single "
                f"tokens by id: give bad_words_ids=None to lift them; {OTHERS}"
            )
        if words[0] not in ends:  # as transformers, which never forbids an end by bad_words_ids
            found.append(int(words[0]))
    return list(dict.fromkeys(found))
