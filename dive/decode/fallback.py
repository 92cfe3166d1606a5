"""What a call of `generate` may ask for that `DecodeSession` leaves to transformers, in words."""

import copy
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache
from transformers.generation.configuration_utils import GenerationMode

from dive.backbone.kv_cache import caches_in
from dive.decode import native
from dive.decode.setting_checks import check_kinds, check_possible
from dive.decode.whole_config import WholeConfig
from dive.errors import DiveError

if TYPE_CHECKING:
    from dive.decode.spec import DecoderSpec

EMBEDS = "the prompt is given as embeddings"
CACHE = "a cache is given"
SYNCED = "several processes decode in step"
ASKED = (EMBEDS, CACHE)  # what the caller gave, and no surprise
_CACHE_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")
# transformers gives none of these to a custom_generate function, or takes one such function alone
_KEYWORDS = ("assistant_model", "assistant_tokenizer", "tokenizer", "custom_generate")
# "hybrid" is in the generation_config.json of Gemma 3 and MedGemma; transformers 5 drops it
_DYNAMIC = (None, "dynamic", "hybrid")


class Plan(NamedTuple):
    """Which code decodes, "dive._C" or "transformers", and why or how.

    asked: whether the caller's own settings rule the engine out, as beam search does. Where they do
        not, running in transformers is a `FallbackWarning`.
    """

    engine: str
    reason: str
    asked: bool = False


def own_plan(spec: "DecoderSpec") -> Plan:
    """The engine decodes, and in which form."""
    info = native.build_info() or {}
    dtype = str(spec.dtype).removeprefix("torch.")
    on = info.get("isa") if spec.device.type == "cpu" else spec.device
    return Plan("dive._C", f"a {spec.family} decoder in {dtype} on {on}")


def check_names(model: Any, kwargs: dict[str, Any]) -> None:
    """DiveError that names the arguments which `model.generate(**kwargs)` would not know, and the
    settings of its generation_config that nothing would read, or whose value is of no use."""
    told = kwargs.get("generation_config")
    for asked in ({} if told is None else vars(told), kwargs):
        check_kinds(asked)
        check_possible(model, asked)
    if kwargs.get("custom_generate") is not None:
        return  # it may have arguments of its own
    if told is not None:
        check_settings(vars(told), vars(model.generation_config))
    config = vars(GenerationConfig())
    own = {*inspect.signature(GenerationMixin.generate).parameters, *_KEYWORDS, "trust_remote_code"}
    others = {
        name: value
        for name, value in kwargs.items()
        # a cache has one name in one transformers and another in the next
        if name not in own and name not in config and not isinstance(value, Cache)
    }
    unknown = [name for name, value in others.items() if not _is_input(model, name, value)]
    if unknown:
        raise DiveError(
            f"{', '.join(unknown)}: no argument of generate, no setting of its GenerationConfig, "
            f"and no input of {type(model).__name__}"
        )


def check_settings(told: Mapping[str, Any], own: Collection[str]) -> None:
    """DiveError that names the settings of a generation_config which are none: transformers takes
    any. Those of the model's own checkpoint are for its own code, which may read them."""
    known = {*vars(GenerationConfig()), *own, "transformers_version"}
    unknown = [str(name) for name in told if name not in known and not str(name).startswith("_")]
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


def named(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `model.generate(*args, **kwargs)` by their names; DiveError.

    custom_generate=None is as not given.
    """
    parameters = inspect.signature(model.generate).parameters.values()
    if any(one.kind == one.VAR_POSITIONAL for one in parameters):  # it hands them on
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
        raise DiveError(f"generation_config is {config!r}; wants a transformers.GenerationConfig")
    if given.get("custom_generate", "") is None:
        del given["custom_generate"]
    return given


def asked_config(model: Any, kwargs: Mapping[str, Any]) -> GenerationConfig:
    """The config that `model.generate(**kwargs)` decodes by, as transformers puts it together."""
    given = kwargs.get("generation_config")
    config = GenerationConfig() if given is None else copy.deepcopy(given)
    own = model.generation_config.to_dict()
    config.update(**own, defaults_only=True, allow_custom_entries=True)
    config.update(**{k: v for k, v in kwargs.items() if k in vars(config)})
    return config


def keyword_reason(kwargs: Mapping[str, Any]) -> str | None:
    """Of the arguments of `generate` itself."""
    if kwargs.get("synced_gpus"):
        return SYNCED
    for name in _KEYWORDS:
        if kwargs.get(name) is not None:
            return f"{name} is given"
    return None


def config_reason(config: Any) -> str | None:
    """Of the generation config."""
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        return f"{mode.value.replace('_', ' ')} is asked for"
    if config.return_dict_in_generate:
        return "return_dict_in_generate asks for more than tokens"
    if config.use_cache is False:
        return "use_cache is False"
    if config.prefill_chunk_size is not None:
        return "prefill_chunk_size is given"
    if config.cache_implementation not in _DYNAMIC:
        return f"the {config.cache_implementation} cache is asked for"
    if getattr(config, "guidance_scale", None) not in (None, 1, 1.0):
        return "guidance_scale runs the model a second time"
    return None


def config_plan(model: Any, config: Any) -> Plan | None:
    """What decodes where the generation config rules the engine out; None where it does not.

    A setting of the model's own generation_config, which nobody gave, is not asked for.
    """
    return _plan_of(model, config, config_reason)


def _plan_of(model: Any, config: Any, reason_of: Callable[[Any], str | None]) -> Plan | None:
    reason = reason_of(config)
    if reason is None:
        return None
    # of a whole config nothing is the model's
    if not isinstance(config, WholeConfig) and reason == reason_of(model.generation_config):
        return Plan("transformers", f"{reason} (by the model's generation_config)")
    return Plan("transformers", reason, asked=True)


def _settings_reason(config: Any) -> str | None:
    """Of the generation config, before transformers has made criteria of it."""
    if config.stop_strings is not None:
        return "stop_strings is given"
    if config.prompt_lookup_num_tokens is not None:
        return "prompt_lookup_num_tokens is given"
    return config_reason(config)


def settings_plan(model: Any, kwargs: Mapping[str, Any]) -> Plan | None:
    """What decodes `model.generate(**kwargs)` where its settings rule the engine out, or None."""
    reason = keyword_reason(kwargs)
    if reason is not None:
        return Plan("transformers", reason, asked=True)
    plan = _plan_of(model, asked_config(model, kwargs), _settings_reason)
    if plan is None and kwargs.get("inputs_embeds") is not None:
        return Plan("transformers", EMBEDS, asked=True)
    return plan


def call_plan(
    spec: "DecoderSpec",
    model: Any,
    config: Any,
    input_ids: Tensor,
    model_kwargs: dict[str, Any],
    synced: bool,
) -> Plan:
    """What decodes a call, by all that transformers hands over for it."""
    plan = config_plan(model, config)
    if plan is not None:
        return plan
    reason = input_reason(input_ids, model_kwargs, synced)
    return own_plan(spec) if reason is None else Plan("transformers", reason, reason in ASKED)


def offered_plan(spec: "DecoderSpec", model: Any, kwargs: dict[str, Any]) -> Plan:
    """The `call_plan` of `model.generate(**kwargs)`: transformers prepares it, nothing is run.

    A prompt of one token stands for one that is not among the arguments.
    """
    found: list[Plan] = []

    def look(
        _model: Any,
        input_ids: Tensor,
        generation_config: Any = None,
        synced_gpus: bool = False,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        **model_kwargs: Any,
    ) -> Tensor:
        found.append(
            call_plan(spec, model, generation_config, input_ids, model_kwargs, synced_gpus)
        )
        return input_ids

    given = {name: value for name, value in kwargs.items() if name != "streamer"}
    stands_in = given.get("input_ids", given.get("inputs")) is None
    if stands_in:
        mask = given.get("attention_mask")
        shape = (1, 1) if mask is None else mask.shape
        given["input_ids"] = torch.ones(shape, dtype=torch.long, device=spec.device)
        given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
    with warnings.catch_warnings():
        if stands_in:  # what is said of its length is said of no prompt of the caller's
            warnings.simplefilter("ignore")
        model.generate(**given, custom_generate=look)
    return found[0]


def input_reason(input_ids: Tensor, model_kwargs: dict[str, Any], synced: bool) -> str | None:
    """Of the prompt and its cache."""
    if model_kwargs.get("inputs_embeds") is not None or input_ids.shape[1] == 0:
        return EMBEDS
    if synced:
        return SYNCED
    mask = model_kwargs.get("attention_mask")
    if mask is not None:
        if mask.dim() != 2 or mask.shape != input_ids.shape:
            return f"the attention mask is {list(mask.shape)}, not one entry a token"
        ones = mask != 0
        if not (ones[:, -1].all() and (ones[:, 1:] >= ones[:, :-1]).all()):
            return "the prompts are not padded on the left only"
    caches = caches_in(model_kwargs)
    if len(caches) != 1:
        names = ", ".join(sorted(model_kwargs))
        return f"transformers hands over {len(caches)} caches, want one (it gave {names})"
    cache = caches[0]
    if type(cache) is not DynamicCache:
        return f"the cache is a {type(cache).__name__}"
    if cache.get_seq_length() > 0 or getattr(cache, "_is_user_defined", False):
        return CACHE
    odd = [type(x).__name__ for x in cache.layers if type(x).__name__ not in _CACHE_LAYERS]
    return f"the cache has a {odd[0]}" if odd else None
