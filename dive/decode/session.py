"""DecodeSession: the text decoder run by `dive._C`, one call per token, steering included.

    session = DecodeSession(backbone, adapter)
    session.generate(**inputs, max_new_tokens=200)
    model.generate(**inputs, max_new_tokens=200, custom_generate=session)     # the same
    session.stream(requests, slots=8)     # many prompts; a waiting one takes a finished one's slot

The transformers model runs the prefill, images included; the session takes over its KV cache and
decodes the answer. What the engine cannot decode goes to transformers with the adapter attached,
and a warning gives the reason.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from dive.adapter.adapter import SteeringAdapter, as_adapter
from dive.adapter.at_work import call_of_its_own
from dive.adapter.attach import each_of_its_own
from dive.backbone.load import Backbone
from dive.backbone.model_lock import model_lock
from dive.backbone.structure import decoder_layers, unwrap
from dive.decode.batch import BatchDecoding
from dive.decode.binding import Binding, without_trace
from dive.decode.continuous import ContinuousBatch, Request, Written
from dive.decode.fallback import (
    EngineChoice,
    Fallback,
    attachment_reason,
    call_choice,
    offered_choice,
    own_choice,
    settings_choice,
)
from dive.decode.generate_arguments import given_arguments, requested_config
from dive.decode.steered import steered
from dive.decode.transformers_errors import refusals
from dive.decode.usable_logits import generate_watched
from dive.errors import DiveError, checks
from dive.errors.renamed import renamed_arguments, renamed_attribute


class DecodeSession:
    """A decoder for one model. Between calls it keeps nothing but the bound weights.

    backbone_or_model: a `Backbone`, whose tokenizer stop_strings need, or a bare model.
    adapter: steers prompt and answer; None takes what `dive.steer` has attached, if anything. A
        list has one adapter, or None for no steering, per sample of the batches that follow.
    strict: raise DiveError for what the engine cannot decode, instead of using transformers.
    ran: which engine decoded the last call (of `stream`: the last request that was prefilled); None
        before.
    failed: rows of the last `generate`'s output whose logits became unusable (not finite, or all
        the same): the answer ends there, padding follows, and a warning names them. Of `stream` see
        `Written.error`.
    The model's own weights are used, so that memory holds them once. Training, moving or replacing
    them between two calls is noticed. Several threads may share a session: prefills take turns, and
    each call decodes by itself; `ran` is then that of the last.
    """

    def __init__(
        self,
        backbone_or_model: Any,
        adapter: SteeringAdapter | str | Path | Sequence[SteeringAdapter | None] | None = None,
        *,
        strict: bool = False,
    ) -> None:
        self.model: Any = unwrap(backbone_or_model)
        known = isinstance(backbone_or_model, Backbone)
        self.tokenizer: Any = backbone_or_model.tokenizer if known else None
        self.adapter: SteeringAdapter | None = None
        self.adapters: tuple[SteeringAdapter | None, ...] | None = None
        if adapter is None:
            pass
        elif isinstance(adapter, (list, tuple)):
            self.adapters = tuple(None if one is None else as_adapter(one) for one in adapter)
            if not self.adapters:
                raise DiveError("adapter is an empty list, want an adapter or None per sample")
        else:
            self.adapter = as_adapter(adapter)
        for one in {self.adapter, *(self.adapters or ())} - {None}:
            assert one is not None
            one.check_backbone(self.model)
        self.binding = Binding(self.model)
        self.fallback = Fallback(self.model, strict)
        self.failed: list[int] = []

    @property
    def ran(self) -> EngineChoice | None:
        return self.fallback.ran

    def engine_choice(self, *args: Any, **kwargs: Any) -> EngineChoice:
        """Which engine would run `generate(*args, **kwargs)`, and why.

        transformers prepares the call; no forward is run. (It passes neither assistant_model nor
        tokenizer to a `custom_generate` function: assisted decoding cannot go there, and
        stop_strings are for `session.generate`.)

        Raises:
            DiveError: `generate` does not know one of the names, or refuses a setting.
        """
        given = given_arguments(self.model, args, kwargs, self.tokenizer)
        choice = self._settings_choice(given)
        if choice.engine == "dive._C":
            assert self.binding.spec is not None
            with model_lock(self.model), without_trace(self.model), refusals(given):
                return offered_choice(self.binding.spec, self.model, given)
        return choice

    plan = renamed_attribute("plan", "engine_choice")

    def _settings_choice(self, generate_kwargs: dict[str, Any]) -> EngineChoice:
        """The engine by model and settings alone, before transformers has prepared the call."""
        reason = self.binding.bind()
        if reason is not None:
            return EngineChoice("transformers", reason)
        assert self.binding.spec is not None
        with refusals(generate_kwargs):
            return settings_choice(self.model, generate_kwargs) or own_choice(self.binding.spec)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate` with the same arguments, decoded by the engine where it can.

        A streamer receives the tokens, which transformers passes to no `custom_generate` function.
        """
        with call_of_its_own(decoder_layers(self.model)[0]):
            return self._generate(args, kwargs)

    def _generate(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = given_arguments(self.model, args, kwargs, self.tokenizer)
        choice = self._settings_choice(given)
        if choice.engine != "dive._C":
            self.fallback.note(choice)
            with (
                model_lock(self.model),
                steered(self.model, self.adapters or self.adapter),
                refusals(given),
            ):
                output, watch = generate_watched(
                    self.model, given, requested_config(self.model, given)
                )
            self._warn_of_failed(watch.cut(output))
            return output
        with refusals(given):
            return self.model.generate(
                **given, custom_generate=partial(self, streamer=given.get("streamer"))
            )

    @renamed_arguments(rows="slots")
    def stream(self, requests: Iterable[Request], slots: int = 8) -> Iterator[Written]:
        """Answers many prompts by continuous batching; yields each answer when it ends.

        slots: how many prompts are decoded at once; the next one takes the slot of an answer that
            has ended, and `requests` is read as slots become free.
        Every answer is the one that its prompt gets alone. Other calls of this session are allowed
        meanwhile.
        """
        slots = checks.whole("slots", slots, 1)
        if not isinstance(requests, Iterable):
            raise DiveError(
                f"requests is {requests!r}, want an iterable of dive.decode.continuous.Request"
            )
        if self.adapters is not None:
            raise DiveError(
                "stream does not go with an adapter per sample: give each request its own"
            )
        batch = ContinuousBatch(
            self.binding, self.fallback, self.adapter, self.tokenizer, requests, slots
        )
        return each_of_its_own(self.model, batch.run())

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        generation_config: Any = None,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """The `custom_generate` function of `model.generate`; returns prompt and answer [B, T]."""
        if model is not self.model:
            raise DiveError(
                f"this session decodes for another {type(self.model).__name__}; make one per model"
            )
        processors = logits_processor if logits_processor is not None else LogitsProcessorList()
        criteria = stopping_criteria if stopping_criteria is not None else StoppingCriteriaList()
        with model_lock(self.model):
            reason = self.binding.bind() or attachment_reason(self.model)
            spec = self.binding.spec
            if reason is not None:
                choice = EngineChoice("transformers", reason)
            else:
                assert spec is not None
                choice = call_choice(
                    spec, model, generation_config, input_ids, model_kwargs, synced_gpus
                )
            self.fallback.note(choice)
            if choice.engine != "dive._C":
                more = {} if streamer is None else {"streamer": streamer}
                with steered(self.model, self.adapters or self.adapter):
                    output, watch = self.fallback.decode(
                        input_ids,
                        processors,
                        criteria,
                        generation_config,
                        synced_gpus=synced_gpus,
                        **more,
                        **model_kwargs,
                    )
                self._warn_of_failed(watch.cut(output))
                return output
            cache = self.binding.lend()
            try:
                decoding = BatchDecoding(
                    model, cache, input_ids, processors, criteria, generation_config, streamer
                )
                decoding.check_context(model_kwargs)
                with steered(self.model, self.adapters or self.adapter) as adapters:
                    steerings = self.binding.steerings(adapters, decoding.batch, cache.spec)
                    scores = decoding.prefill(model_kwargs, steerings)
            except BaseException:
                self.binding.give_back(cache)
                raise
        try:
            output = decoding.decode(scores)
        finally:
            self.binding.give_back(cache)
        self._warn_of_failed(decoding.failed)
        return output

    def _warn_of_failed(self, failed: list[int]) -> None:
        self.failed = failed
        if failed:
            warnings.warn(
                f"logits were not finite, or all the same, in row {', '.join(map(str, failed))} "
                "of the batch: the answer ends there (DecodeSession.failed)",
                stacklevel=4,
            )
