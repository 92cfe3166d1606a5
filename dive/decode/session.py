"""DecodeSession: the text decoder run by `dive._C`, one call a token, steering included.

    session = DecodeSession(backbone, adapter)
    session.generate(**inputs, max_new_tokens=200)
    model.generate(**inputs, max_new_tokens=200, custom_generate=session)     # the same
    session.stream(requests, rows=8)      # many prompts; a waiting one takes a finished one's row

Hugging Face's model reads the prompt and its images; the session takes over the cache and writes
the answer. What it cannot do it hands to transformers with the adapter attached, and says so.
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
from dive.decode.batch import BatchRun
from dive.decode.binding import Binding, without_trace
from dive.decode.continuous import ContinuousBatch, Request, Written
from dive.decode.fallback import (
    Fallback,
    Plan,
    attachment_reason,
    call_plan,
    offered_plan,
    own_plan,
    settings_plan,
)
from dive.decode.generate_arguments import asked_config, given_arguments
from dive.decode.steered import steered
from dive.decode.transformers_errors import refusals
from dive.decode.usable_logits import generate_watched
from dive.errors import DiveError, checks


class DecodeSession:
    """Decodes for one model. It holds no state from one call to the next but bound weights.

    backbone_or_model: of a `Backbone` it knows the tokenizer, as stop_strings want it.
    adapter: steers prompt and answer; None takes what `dive.steer` has attached, if anything. A
        list has one adapter, or None for no steering, for every row of the batches that follow.
    strict: what the engine cannot decode is a DiveError and not left to transformers.
    ran: what decoded the last call (of `stream`: the last request that was prompted); None before.
    failed: rows of what the last `generate` returned whose logits said nothing (not finite, or all
        the same): the answer ends there, and padding follows. A warning says so; of `stream` every
        answer tells.
    The weights are used where they lie: memory holds them once. Training, moving or replacing them
    between two calls is noticed. Several threads may use one session: each call reads its prompt in
    its turn and decodes by itself; `ran` is then that of the last.
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
                raise DiveError("adapter is an empty list, want an adapter or None for every row")
        else:
            self.adapter = as_adapter(adapter)
        for one in {self.adapter, *(self.adapters or ())} - {None}:
            assert one is not None
            one.check_backbone(self.model)
        self.binding = Binding(self.model)
        self.fallback = Fallback(self.model, strict)
        self.failed: list[int] = []

    @property
    def ran(self) -> Plan | None:
        return self.fallback.ran

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """Which engine would run `generate(*args, **kwargs)`, and why.

        transformers is asked what it would hand over for these arguments; no forward is run. (It
        gives a `custom_generate` function neither assistant_model nor tokenizer: an assistant has
        no part there, and stop_strings are for `session.generate`.)
        DiveError where `generate` would not know one of the names, or refuses a setting.
        """
        given = given_arguments(self.model, args, kwargs, self.tokenizer)
        plan = self._plan(given)
        if plan.engine == "dive._C":
            assert self.binding.spec is not None
            with model_lock(self.model), without_trace(self.model), refusals(given):
                return offered_plan(self.binding.spec, self.model, given)
        return plan

    def _plan(self, generate_kwargs: dict[str, Any]) -> Plan:
        """By model and settings alone; what transformers hands over is looked at when it does."""
        reason = self.binding.bind()
        if reason is not None:
            return Plan("transformers", reason)
        assert self.binding.spec is not None
        with refusals(generate_kwargs):
            return settings_plan(self.model, generate_kwargs) or own_plan(self.binding.spec)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate` with the same arguments, decoded by this session where it can.

        transformers gives a `custom_generate` function no streamer; here it gets the tokens.
        """
        with call_of_its_own(decoder_layers(self.model)[0]):
            return self._generate(args, kwargs)

    def _generate(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = given_arguments(self.model, args, kwargs, self.tokenizer)
        plan = self._plan(given)
        if plan.engine != "dive._C":
            self.fallback.note(plan)
            with (
                model_lock(self.model),
                steered(self.model, self.adapters or self.adapter),
                refusals(given),
            ):
                output, watch = generate_watched(self.model, given, asked_config(self.model, given))
            self._tell(watch.cut(output))
            return output
        with refusals(given):
            return self.model.generate(
                **given, custom_generate=partial(self, streamer=given.get("streamer"))
            )

    def stream(self, requests: Iterable[Request], rows: int = 8) -> Iterator[Written]:
        """Answers to many prompts, each as it ends; the next prompt then takes its row.

        `requests` is read as rows become free. Every answer is the one that its prompt gets alone.
        Other calls of this session in between are no harm.
        """
        rows = checks.whole("rows", rows, 1)
        if not isinstance(requests, Iterable):
            raise DiveError(
                f"requests is {requests!r}, want an iterable of dive.decode.continuous.Request"
            )
        if self.adapters is not None:
            raise DiveError("a session with an adapter a row: give each request its own instead")
        batch = ContinuousBatch(
            self.binding, self.fallback, self.adapter, self.tokenizer, requests, rows
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
        """What `model.generate` calls as its `custom_generate`; returns prompt and answer."""
        if model is not self.model:
            raise DiveError(
                f"this session decodes for another {type(self.model).__name__}; make one a model"
            )
        processors = logits_processor if logits_processor is not None else LogitsProcessorList()
        criteria = stopping_criteria if stopping_criteria is not None else StoppingCriteriaList()
        with model_lock(self.model):
            reason = self.binding.bind() or attachment_reason(self.model)
            spec = self.binding.spec
            if reason is not None:
                plan = Plan("transformers", reason)
            else:
                assert spec is not None
                plan = call_plan(
                    spec, model, generation_config, input_ids, model_kwargs, synced_gpus
                )
            self.fallback.note(plan)
            if plan.engine != "dive._C":
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
                self._tell(watch.cut(output))
                return output
            cache = self.binding.lend()
            try:
                run = BatchRun(
                    model, cache, input_ids, processors, criteria, generation_config, streamer
                )
                run.check_context(model_kwargs)
                with steered(self.model, self.adapters or self.adapter) as adapters:
                    steerings = self.binding.steerings(adapters, run.batch, cache.spec)
                    scores = run.prefill(model_kwargs, steerings)
            except BaseException:
                self.binding.give_back(cache)
                raise
        try:
            output = run.decode(scores)
        finally:
            self.binding.give_back(cache)
        self._tell(run.failed)
        return output

    def _tell(self, failed: list[int]) -> None:
        self.failed = failed
        if failed:
            warnings.warn(
                f"logits were not finite, or all the same, in row {', '.join(map(str, failed))} "
                "of the batch: the answer ends there (DecodeSession.failed)",
                stacklevel=4,
            )
