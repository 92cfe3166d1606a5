"""Continuous batching: a waiting prompt takes the KV-cache slot of an answer that has ended.

Each prompt is read alone by transformers' model, so that its answer does not depend on what else
is being written, and all live slots are decoded together. Slots have capacity for the longest
prompt and answer known so far; one that needs more waits until the live answers are done.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dive.adapter.adapter import SteeringAdapter
from dive.adapter.attach import PerSampleAttachment, attachment_of, unsteered
from dive.backbone.model_lock import model_lock
from dive.decode.answers import Answer, Chooser, Live, ends_of, plain_stop
from dive.decode.batch import warn_of_context
from dive.decode.binding import Binding
from dive.decode.engine import EngineCache
from dive.decode.fallback import (
    EngineChoice,
    Fallback,
    attachment_reason,
    call_choice,
    settings_choice,
)
from dive.decode.generate_arguments import given_arguments, requested_config
from dive.decode.model_check import Unsupported
from dive.decode.prompt_cache import PromptCache, prompt_cache, read_but_last
from dive.decode.sampling import as_seed, drawing, generator, sampling_by, seed_of_this_call
from dive.decode.steered import PerSample, steered
from dive.decode.transformers_errors import refusals
from dive.decode.usable_logits import Watch, generate_watched, most_likely_next
from dive.errors import DiveError
from dive.errors.renamed import warn_renamed


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt to answer.

    inputs: the model's inputs for `model.generate`, a batch of one, on the model's device.
    settings: further arguments of `generate`, as generation_config or logits_processor.
    adapter: steers prompt and answer; None: the session's own, or what is attached.
    seed: of sampling. The answer is that of `torch.manual_seed(seed)` and `generate` for this
        prompt alone. None: drawn from torch's generator when the prompt is read.
    streamer: as for transformers.

    Consecutive requests with the same `inputs` object share a prefill where their adapters have
    positions="response" (or are None): they differ only from the last token of the prompt on.
    """

    inputs: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    adapter: SteeringAdapter | None = None
    seed: int | None = None
    streamer: Any = None

    def capacity(self) -> int:
        """Tokens of prompt and answer, as far as known before transformers prepares the call."""
        config = self.settings.get("generation_config")
        new = self.settings.get("max_new_tokens") or getattr(config, "max_new_tokens", None) or 0
        return self.inputs["input_ids"].shape[1] + new


class Written(NamedTuple):
    """A request's answer.

    index: of the request, counted from 0. token_ids: with the token that ended it, if one did.
    seconds: of its prefill, and its share of the decode steps that it took part in. engine: which
    one decoded it, "dive._C" or "transformers". error: it ends at unusable logits.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which has no use here
    token_ids: list[int]
    seconds: float
    engine: str = "dive._C"
    error: bool = False

    @property
    def place(self) -> int:
        """Old name of `index`."""
        warn_renamed("Written.place", "index")
        return self.index


@dataclass(eq=False)
class _Prompted:
    """An answer whose prompt has been read, and which may be waiting for a slot."""

    index: int
    answer: Answer
    seconds: float = 0.0
    capacity: int = 0
    prefix: PromptCache | None = None
    token: Tensor | None = None  # [1], the first input of its slot
    adapter: SteeringAdapter | None = None
    engine: str = "dive._C"

    def written(self) -> Written:
        """The answer as it is yielded."""
        answer = self.answer
        return Written(self.index, answer.tokens, self.seconds, self.engine, answer.error)


class ContinuousBatch:
    """One `DecodeSession.stream`, which borrows the session's engine until its end.

    adapter: the session's, for requests without one. slots: most sequences decoded at once.
    """

    def __init__(
        self,
        binding: Binding,
        fallback: Fallback,
        adapter: SteeringAdapter | None,
        tokenizer: Any,
        requests: Iterable[Request],
        slots: int,
    ) -> None:
        self.binding, self.fallback, self.model = binding, fallback, binding.model
        self.adapter, self.tokenizer = adapter, tokenizer
        self.slots = slots
        self._requests = iter(requests)
        self._waiting: deque[Request] = deque()
        self._next_index = 0
        self._held: _Prompted | None = None  # needs more capacity than there is
        self._prefix: PromptCache | None = None  # of the last prompt, if the next may use it
        self._attachment: PerSampleAttachment | None = None
        self._running: dict[Answer, _Prompted] = {}
        self._free_slots: list[int] = []
        self._cache: EngineCache | None = None
        self._unable: str | None = None  # why the engine cannot be bound
        self._live: Live | None = None

    def run(self) -> Iterator[Written]:
        """Yields the answers, each when it ends."""
        with model_lock(self.model):  # no other call may borrow the engine in between
            self._unable = self.binding.bind()
            if self._unable is None:
                self._cache = self.binding.lend()
        if self._cache is not None:
            self._cache.vacate()
            self._live = Live(self._cache)
        try:
            self._queue(self.slots)
            while self._waiting or self._running or self._held:
                yield from self._fill()
                if self._running:
                    yield from self._advance()
        finally:
            if self._attachment is not None:
                self._attachment.detach()
            if self._cache is not None:
                self.binding.give_back(self._cache)

    def _queue(self, count: int) -> Request | None:
        """Reads requests until `count` are waiting, if there are as many; returns the first."""
        while len(self._waiting) < count:
            request = next(self._requests, None)
            if request is None:
                break
            self._waiting.append(request)
        return self._waiting[0] if self._waiting else None

    # slots

    def _fill(self) -> Iterator[Written]:
        """Gives free slots to waiting requests; yields answers that their first token ended."""
        while self._held is not None or self._queue(1) is not None:
            if self._running and not self._free_slots:
                return
            one, self._held = self._held or self._prompt(), None
            if one.answer.ended:
                yield one.written()
            elif self._cache is not None and one.capacity > self._cache.capacity and self._running:
                self._held = one
                return
            else:
                self._start(one)

    def _start(self, one: _Prompted) -> None:
        """Gives an answer a free slot, and that slot the cache of its prompt."""
        cache, live, prefix, token = self._cache, self._live, one.prefix, one.token
        assert cache is not None and live is not None and prefix is not None and token is not None
        if one.capacity > cache.capacity:
            known = [request.capacity() for request in self._waiting]
            # with fewer requests than slots no more than these will come
            count = cache.slots or min(self.slots, len(self._waiting) + 1)
            cache.reserve(count, max([one.capacity, *known]))
            self._free_slots = list(range(count))[::-1]
        cache.allow_positions(prefix.position + one.capacity - prefix.length)
        one.answer.slot = self._free_slots.pop()
        steering = self.binding.steering(one.adapter, cache.spec)
        cache.copy_cache(
            one.answer.slot, prefix.layers, 0, 0, prefix.length, prefix.position, steering
        )
        one.prefix = None  # its memory is transformers' cache
        self._running[one.answer] = one
        live.add(one.answer, token)

    def _advance(self) -> Iterator[Written]:
        """Runs one decode step; yields the answers that end with it."""
        assert self._live is not None
        started, running = time.perf_counter(), list(self._running.values())
        advanced = self._live.advance()
        share = (time.perf_counter() - started) / len(running)
        for one in running:
            one.seconds += share
        ended = [self._running.pop(answer) for answer in advanced if answer.ended]
        self._free_slots += [one.answer.slot for one in ended]
        for one in ended:
            yield one.written()

    # prompts

    def _prompt(self) -> _Prompted:
        """Reads the next request's prompt; where transformers decodes it, completes its answer."""
        started = time.perf_counter()
        request, index = self._waiting.popleft(), self._next_index
        self._next_index += 1
        if not isinstance(request, Request):
            raise DiveError(
                f"request {index} is {request!r}, want a dive.decode.continuous.Request"
            )
        if request.inputs["input_ids"].shape[0] != 1:
            count = request.inputs["input_ids"].shape[0]
            raise DiveError(f"request {index} has {count} sequences, want one")
        with refusals(request.settings):
            request = self._checked(request, index)
        if self._prefix is not None and self._prefix.inputs is not request.inputs:
            self._prefix = None
        choice = self._ruled_out(request)
        shared = choice is None and self._shares(request)
        shared = shared and (self._prefix is not None or self._next_shares(request))
        steering: Any = unsteered(self.model) if shared else self._steered(request)
        with model_lock(self.model), steering as steers, refusals(request.settings):
            if choice is None:
                one = self._read(request, index, shared)
            else:
                self.fallback.note(choice)
                one = self._by_transformers(request, index)
        one.adapter = self._own(request) if shared else steers[0]
        one.seconds = time.perf_counter() - started
        return one

    def _checked(self, request: Request, index: int) -> Request:
        """The request with checked settings; DiveError."""
        twice = sorted(request.settings.keys() & {*request.inputs, "streamer"})
        if twice:
            raise DiveError(
                f"request {index} has {', '.join(twice)} among its settings; inputs and a streamer "
                "have fields of their own"
            )
        settings = given_arguments(self.model, (), request.settings, self.tokenizer)
        config = requested_config(self.model, settings)
        if config.num_return_sequences not in (None, 1):
            raise DiveError(
                f"num_return_sequences is {config.num_return_sequences}: one request has one answer"
            )
        seed = None if request.seed is None else as_seed(request.seed)
        return replace(request, settings=settings, seed=seed)

    def _ruled_out(self, request: Request) -> EngineChoice | None:
        """The choice of transformers, where it is known before the call is prepared, or None."""
        if self._unable is not None:
            return EngineChoice("transformers", self._unable)
        return settings_choice(self.model, dict(request.settings))

    def _read(self, request: Request, index: int, shared: bool) -> _Prompted:
        """Runs the prefill, or uses that of the request before it; `shared`: without steering."""
        cache = self._cache
        assert cache is not None
        reason = attachment_reason(self.model)
        try:
            if cache.moved():
                raise DiveError("the model's weights were moved or replaced between two answers")
        except Unsupported as error:
            reason = str(error)

        def take_over(
            model: Any,
            input_ids: Tensor,
            logits_processor: Any = None,
            stopping_criteria: Any = None,
            generation_config: Any = None,
            synced_gpus: bool = False,
            **kwargs: Any,
        ) -> Any:
            """The request's `custom_generate`, which runs or shares the prefill of its prompt."""
            if reason is not None:
                choice = EngineChoice("transformers", reason)
            else:
                choice = call_choice(
                    cache.spec, model, generation_config, input_ids, kwargs, synced_gpus
                )
            self.fallback.note(choice)
            if choice.engine != "dive._C":
                if request.streamer is not None:
                    kwargs["streamer"] = request.streamer
                seed, device = request.seed, input_ids.device
                with (
                    drawing(seed, generation_config, logits_processor, device) as (own, config),
                    self._steered(
                        request
                    ),  # prompt and answer, also where the prefill was to be shared
                ):
                    output, watch = self.fallback.decode(
                        input_ids, own, stopping_criteria, config, **kwargs
                    )
                return _written(request, index, output, watch)
            new = (stopping_criteria.max_length or generation_config.max_length) - (
                input_ids.shape[1]
            )
            warn_of_context(cache.spec.context, input_ids.shape[1], new)
            prompt = input_ids.to(cache.spec.device)
            answer = _answer(request, prompt, new, logits_processor, stopping_criteria,
                             generation_config)  # fmt: skip
            one = _Prompted(index, answer, capacity=prompt.shape[1] + new)
            if shared and self._prefix is None:
                self._prefix = read_but_last(model, request.inputs, prompt, kwargs)
            if shared:
                one.prefix, one.token = self._prefix, prompt[0, -1:]
                return one
            inputs = model.prepare_inputs_for_generation(
                input_ids, is_first_iteration=True, **kwargs
            )
            outputs = model(**inputs, return_dict=True)
            one.prefix = prompt_cache(request.inputs, inputs, outputs, prompt.shape[1])
            scores = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
            chooser = answer.chooser
            one.token = most_likely_next(scores) if chooser is None else chooser.choose(scores)
            answer.take(int(one.token))
            return one

        inputs = dict(request.inputs)
        if shared and self._prefix is not None and reason is None:
            # the prefill is done, and needs no image again
            ids = inputs["input_ids"]
            inputs = {"input_ids": ids, "position_ids": torch.arange(ids.shape[1])[None]}
            inputs["attention_mask"] = request.inputs.get("attention_mask", torch.ones_like(ids))
        return self.model.generate(
            **inputs, **request.settings, streamer=request.streamer, custom_generate=take_over
        )

    def _by_transformers(self, request: Request, index: int) -> _Prompted:
        """The answer as transformers' own `generate` decodes it."""
        settings = request.settings
        config = requested_config(self.model, settings)
        streamer, device = request.streamer, self.model.device
        with sampling_by(request.seed, config, settings, streamer, device) as own:
            given = {**request.inputs, **settings, **own, "streamer": streamer}
            output, watch = generate_watched(self.model, given, config)
        return _written(request, index, output, watch)

    # steering

    def _own(self, request: Request) -> SteeringAdapter | None:
        return self.adapter if request.adapter is None else request.adapter

    def _shares(self, request: Request) -> bool:
        """Whether nothing before the last token of its prompt is steered."""
        if request.inputs["input_ids"].shape[1] < 2:
            return False
        if self._attachment is None and attachment_of(self.model) is not None:
            return False  # the caller's own, whichever positions it steers
        own = self._own(request)
        return own is None or own.config.positions == "response"

    def _next_shares(self, request: Request) -> bool:
        following = self._queue(1)
        return (
            following is not None and following.inputs is request.inputs and self._shares(following)
        )

    def _steered(self, request: Request) -> AbstractContextManager[PerSample]:
        """A context with one request's adapter in effect; hooks are attached once for all."""
        if self._attachment is None and request.adapter is not None:
            self._attachment = PerSampleAttachment(self.model, scoped=True)
        if self._attachment is None:
            return steered(self.model, self.adapter)
        return steered(self.model, (self._own(request),), self._attachment)


def _written(request: Request, index: int, output: Any, watch: Watch) -> _Prompted:
    """The answer of transformers' output, which includes the prompt."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    length = watch.lengths(1)[0]
    tokens = sequences[0, request.inputs["input_ids"].shape[1] : length].tolist()
    error = length is not None
    answer = Answer(-1, 0, frozenset(), tokens=tokens, ended=True, error=error)
    return _Prompted(index, answer, engine="transformers")


def _answer(
    request: Request, prompt: Tensor, new: int, processors: Any, criteria: Any, config: Any
) -> Answer:
    own = None if plain_stop(criteria) else criteria
    if not config.do_sample and not processors and own is None:
        chooser = None
    else:
        seed = seed_of_this_call() if request.seed is None and config.do_sample else request.seed
        drawn = None if seed is None else generator(seed, prompt.device)
        chooser = Chooser(prompt, new, processors, own, config.do_sample, drawn)
    return Answer(-1, new, ends_of(criteria), chooser, request.streamer)
