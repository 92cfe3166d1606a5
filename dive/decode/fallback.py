"""Which engine decodes a call of `DecodeSession`, the reason, and decoding in transformers."""

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
from dive.decode.generate_arguments import KEYWORDS, requested_config
from dive.decode.spec import DecoderSpec
from dive.decode.usable_logits import Watch
from dive.decode.whole_config import WholeConfig
from dive.errors import DiveError, FallbackWarning
from dive.errors.renamed import warn_renamed

log = logging.getLogger(__name__)

EMBEDS = "the prompt is given as embeddings"
CACHE = "a cache is given"
SYNCED = "several processes decode in step"
REQUESTED = (EMBEDS, CACHE)  # by the caller's own arguments, which is worth no warning
_CACHE_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")
# "hybrid" is in the generation_config.json of Gemma 3 and MedGemma; transformers 5 drops it
_DYNAMIC = (None, "dynamic", "hybrid")


class EngineChoice(NamedTuple):
    """Which engine decodes, "dive._C" or "transformers", and the reason (or its form).

    requested: whether the caller's own settings rule the engine out, as beam search does. Where
        they do not, running in transformers is a `FallbackWarning`.
    """

    engine: str
    reason: str
    requested: bool = False

    @property
    def asked(self) -> bool:
        """Old name of `requested`."""
        warn_renamed("EngineChoice.asked", "requested")
        return self.requested


class Fallback:
    """Decoding in transformers instead of the engine, for one model.

    strict: raise DiveError instead. ran: which engine decoded the last call; None before.
    reported: the reasons already logged or warned of; each is reported once.
    """

    def __init__(self, model: Any, strict: bool) -> None:
        self.model, self.strict = model, strict
        self.ran: EngineChoice | None = None
        self.reported: set[str] = set()

    def note(self, choice: EngineChoice) -> None:
        """Stores the engine in `ran`; reports each reason for transformers once, or refuses it."""
        if self.strict and choice.engine != "dive._C":
            raise DiveError(f"dive._C cannot decode this: {choice.reason}")
        self.ran = choice
        if choice.engine == "dive._C" or choice.reason in self.reported:
            return
        self.reported.add(choice.reason)
        line = f"decoding in transformers: {choice.reason}"
        if choice.requested:
            log.info(line)
        else:
            warnings.warn(f"{line} (dive._C is not used)", FallbackWarning, stacklevel=3)

    def decode(
        self, input_ids: Tensor, processors: Any, criteria: Any, config: Any, **more: Any
    ) -> tuple[Any, Watch]:
        """Runs transformers' loop for a call of custom_generate; returns its output and watch."""
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


def own_choice(spec: DecoderSpec) -> EngineChoice:
    """The choice of the engine, with the form in which it decodes."""
    info = native.build_info() or {}
    dtype = str(spec.dtype).removeprefix("torch.")
    on = info.get("isa") if spec.device.type == "cpu" else spec.device
    return EngineChoice("dive._C", f"a {spec.family} decoder in {dtype} on {on}")


def keyword_reason(kwargs: Mapping[str, Any]) -> str | None:
    """The reason for transformers in the arguments of `generate` itself, if any."""
    if kwargs.get("synced_gpus"):
        return SYNCED
    for name in KEYWORDS:
        if kwargs.get(name) is not None:
            return f"{name} is given"
    return None


def config_reason(config: Any) -> str | None:
    """The reason for transformers in the generation config, if any."""
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        return f"{mode.value.replace('_', ' ')} is requested"
    if config.return_dict_in_generate:
        return "return_dict_in_generate requests more than tokens"
    if config.use_cache is False:
        return "use_cache is False"
    if config.prefill_chunk_size is not None:
        return "prefill_chunk_size is given"
    if config.cache_implementation not in _DYNAMIC:
        return f"the {config.cache_implementation} cache is requested"
    if getattr(config, "guidance_scale", None) not in (None, 1, 1.0):
        return "guidance_scale runs the model a second time"
    return None


def _config_choice(
    model: Any, config: Any, reason_of: Callable[[Any], str | None]
) -> EngineChoice | None:
    """The choice of transformers where the generation config rules the engine out, or None.

    A setting of the model's own generation_config was not requested by the caller.
    """
    reason = reason_of(config)
    if reason is None:
        return None
    # a WholeConfig takes nothing from the model's
    if not isinstance(config, WholeConfig) and reason == reason_of(model.generation_config):
        return EngineChoice("transformers", f"{reason} (by the model's generation_config)")
    return EngineChoice("transformers", reason, requested=True)


def _settings_reason(config: Any) -> str | None:
    """The reason in the generation config before transformers has made criteria of it."""
    if config.stop_strings is not None:
        return "stop_strings is given"
    if config.prompt_lookup_num_tokens is not None:
        return "prompt_lookup_num_tokens is given"
    return config_reason(config)


def settings_choice(model: Any, kwargs: Mapping[str, Any]) -> EngineChoice | None:
    """The choice of transformers where the settings of `model.generate(**kwargs)` rule the engine
    out, or None."""
    reason = keyword_reason(kwargs)
    if reason is not None:
        return EngineChoice("transformers", reason, requested=True)
    choice = _config_choice(model, requested_config(model, kwargs), _settings_reason)
    if choice is None and kwargs.get("inputs_embeds") is not None:
        return EngineChoice("transformers", EMBEDS, requested=True)
    return choice


def call_choice(
    spec: DecoderSpec,
    model: Any,
    config: Any,
    input_ids: Tensor,
    model_kwargs: dict[str, Any],
    synced: bool,
) -> EngineChoice:
    """The choice for a call, by all that transformers passes to `custom_generate`."""
    choice = _config_choice(model, config, config_reason)
    if choice is not None:
        return choice
    reason = input_reason(input_ids, model_kwargs, synced)
    return (
        own_choice(spec)
        if reason is None
        else EngineChoice("transformers", reason, reason in REQUESTED)
    )


def offered_choice(spec: DecoderSpec, model: Any, kwargs: dict[str, Any]) -> EngineChoice:
    """The `call_choice` of `model.generate(**kwargs)`, prepared by transformers without a forward.

    A prompt of one token takes the place of one that is not among the arguments.
    """
    found: list[EngineChoice] = []

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
            call_choice(spec, model, generation_config, input_ids, model_kwargs, synced_gpus)
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
        if stands_in:  # warnings about its length are about no prompt of the caller's
            warnings.simplefilter("ignore")
        model.generate(**given, custom_generate=look)
    return found[0]


def attachment_reason(model: Any) -> str | None:
    """The reason in what is attached to the model for this thread or task, if any."""
    attachment = attachment_of(model)
    if attachment is None or not attachment.enabled or attachment.mask is None:
        return None
    return "the attached adapter has a mask of positions"


def input_reason(input_ids: Tensor, model_kwargs: dict[str, Any], synced: bool) -> str | None:
    """The reason in the prompt and its KV cache, if any."""
    if model_kwargs.get("inputs_embeds") is not None or input_ids.shape[1] == 0:
        return EMBEDS
    if synced:
        return SYNCED
    mask = model_kwargs.get("attention_mask")
    if mask is not None:
        if mask.dim() != 2 or mask.shape != input_ids.shape:
            return f"the attention mask is {list(mask.shape)}, want one entry per token"
        ones = mask != 0
        if not (ones[:, -1].all() and (ones[:, 1:] >= ones[:, :-1]).all()):
            return "the prompts are not padded on the left only"
    caches = caches_in(model_kwargs)
    if len(caches) != 1:
        names = ", ".join(sorted(model_kwargs))
        return f"transformers passes {len(caches)} caches, want one (it passed {names})"
    cache = caches[0]
    if type(cache) is not DynamicCache:
        return f"the cache is a {type(cache).__name__}"
    if cache.get_seq_length() > 0 or getattr(cache, "_is_user_defined", False):
        return CACHE
    odd = [type(x).__name__ for x in cache.layers if type(x).__name__ not in _CACHE_LAYERS]
    return f"the cache has a {odd[0]}" if odd else None
