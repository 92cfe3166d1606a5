"""What `DecodeSession` leaves to transformers: why, in words, and how."""

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GENERATION_MODES_MAPPING

from dive.adapter.attach import attachment_of
from dive.backbone.kv_cache import caches_in
from dive.decode import native
from dive.decode.generate_arguments import KEYWORDS, asked_config
from dive.decode.spec import DecoderSpec
from dive.decode.usable_logits import Watch
from dive.decode.whole_config import WholeConfig
from dive.errors import DiveError, FallbackWarning

log = logging.getLogger(__name__)

EMBEDS = "the prompt is given as embeddings"
CACHE = "a cache is given"
SYNCED = "several processes decode in step"
ASKED = (EMBEDS, CACHE)  # what the caller gave, and no surprise
_CACHE_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")
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


class Fallback:
    """transformers in the place of the engine, for one model, and who is told of it.

    strict: what the engine cannot decode is a DiveError. ran: what decoded the last call; None
        before. told: the reasons that were said; each is said once.
    """

    def __init__(self, model: Any, strict: bool) -> None:
        self.model, self.strict = model, strict
        self.ran: Plan | None = None
        self.told: set[str] = set()

    def note(self, plan: Plan) -> None:
        """Keeps what runs; says the first time why it is transformers, or refuses that."""
        if self.strict and plan.engine != "dive._C":
            raise DiveError(f"dive._C cannot decode this: {plan.reason}")
        self.ran = plan
        if plan.engine == "dive._C" or plan.reason in self.told:
            return
        self.told.add(plan.reason)
        line = f"decoding in transformers: {plan.reason}"
        if plan.asked:
            log.info(line)
        else:
            warnings.warn(f"{line} (dive._C is not used)", FallbackWarning, stacklevel=3)

    def decode(
        self, input_ids: Tensor, processors: Any, criteria: Any, config: Any, **more: Any
    ) -> tuple[Any, Watch]:
        """What transformers' own loop wrote for a call of custom_generate, and what watched it."""
        mode = config.get_generation_mode()
        name = GENERATION_MODES_MAPPING.get(mode, "/")
        if "/" in name or mode == GenerationMode.ASSISTED_GENERATION:
            raise DiveError(
                f"{mode.value} does not go through custom_generate; call session.generate, or "
                "model.generate without the session"
            )
        watch = Watch.of(config)
        output = getattr(type(self.model), name)(
            self.model,
            input_ids,
            logits_processor=watch.among(processors),
            stopping_criteria=criteria,
            generation_config=config,
            **more,
        )
        return output, watch


def own_plan(spec: DecoderSpec) -> Plan:
    """The engine decodes, and in which form."""
    info = native.build_info() or {}
    dtype = str(spec.dtype).removeprefix("torch.")
    on = info.get("isa") if spec.device.type == "cpu" else spec.device
    return Plan("dive._C", f"a {spec.family} decoder in {dtype} on {on}")


def keyword_reason(kwargs: Mapping[str, Any]) -> str | None:
    """Of the arguments of `generate` itself."""
    if kwargs.get("synced_gpus"):
        return SYNCED
    for name in KEYWORDS:
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


def _plan_of(model: Any, config: Any, reason_of: Callable[[Any], str | None]) -> Plan | None:
    """What decodes where the generation config rules the engine out; None where it does not.

    A setting of the model's own generation_config, which nobody gave, is not asked for.
    """
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
    spec: DecoderSpec,
    model: Any,
    config: Any,
    input_ids: Tensor,
    model_kwargs: dict[str, Any],
    synced: bool,
) -> Plan:
    """What decodes a call, by all that transformers hands over for it."""
    plan = _plan_of(model, config, config_reason)
    if plan is not None:
        return plan
    reason = input_reason(input_ids, model_kwargs, synced)
    return own_plan(spec) if reason is None else Plan("transformers", reason, reason in ASKED)


def offered_plan(spec: DecoderSpec, model: Any, kwargs: dict[str, Any]) -> Plan:
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


def attachment_reason(model: Any) -> str | None:
    """Of what is attached to the model for this thread or task."""
    attachment = attachment_of(model)
    if attachment is None or not attachment.enabled or attachment.mask is None:
        return None
    return "the attached adapter has a mask of positions"


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
