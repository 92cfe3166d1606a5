"""Many prompts in few rows: a waiting prompt takes the row of an answer that has ended.

Each prompt is read alone by transformers' model, so that its answer does not depend on what else
is being written, and all live rows are decoded together. Rows have room for the longest prompt and
answer known so far; one that wants more waits until the live answers are done.
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
from dive.adapter.attach import RowAttachment, attachment_of, unsteered
from dive.backbone.model_lock import model_lock
from dive.decode.answers import Answer, Chooser, Live, ends_of, plain_stop
from dive.decode.batch import tell_context
from dive.decode.binding import Binding
from dive.decode.engine import EngineCache
from dive.decode.fallback import Fallback, Plan, attachment_reason, call_plan, settings_plan
from dive.decode.generate_arguments import asked_config, given_arguments
from dive.decode.model_check import Unsupported
from dive.decode.prompt_cache import PromptCache, prompt_cache, read_but_last
from dive.decode.sampling import as_seed, drawing, generator, sampling_by, seed_of_this_call
from dive.decode.steered import PerRow, steered
from dive.decode.transformers_errors import refusals
from dive.decode.usable_logits import Watch, generate_watched, most_likely_next
from dive.errors import DiveError


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt to answer.

    inputs: what `model.generate` takes for a batch of one, on the model's device.
    settings: more of its arguments, as generation_config or logits_processor.
    adapter: steers prompt and answer; None: the session's own, or what is attached.
    seed: of sampling. The answer is the one that `torch.manual_seed(seed)` and `generate` give for
        this prompt alone. None: drawn from torch's generator when the prompt's turn comes.
    streamer: as transformers takes it.

    Requests one after the other with the same `inputs` object are read once where their adapters
    have positions="response" (or are None): what differs begins at the last token of the prompt.
    """

    inputs: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    adapter: SteeringAdapter | None = None
    seed: int | None = None
    streamer: Any = None

    def room(self) -> int:
        """Tokens of prompt and answer, as far as it can be told before transformers is asked."""
        config = self.settings.get("generation_config")
        new = self.settings.get("max_new_tokens") or getattr(config, "max_new_tokens", None) or 0
        return self.inputs["input_ids"].shape[1] + new


class Written(NamedTuple):
    """A request's answer.

    place: of the request, counted from 0. token_ids: with the token that ended it, if one did.
    seconds: of reading its prompt, and its share of the steps that it took part in. engine: what
    decoded it, "dive._C" or "transformers". error: it ends where logits said nothing.
    """

    place: int
    token_ids: list[int]
    seconds: float
    engine: str = "dive._C"
    error: bool = False


@dataclass(eq=False)
class _Prompted:
    """An answer whose prompt has been read; the row that it is to run in may have yet to come."""

    place: int
    answer: Answer
    seconds: float = 0.0
    room: int = 0
    prefix: PromptCache | None = None
    token: Tensor | None = None  # [1], what its row runs first
    adapter: SteeringAdapter | None = None
    engine: str = "dive._C"

    def written(self) -> Written:
        answer = self.answer
        return Written(self.place, answer.tokens, self.seconds, self.engine, answer.error)


class ContinuousBatch:
    """One `DecodeSession.stream`: takes the session's engine along and gives it up at its end.

    adapter: the session's, for requests without one.
    """

    def __init__(
        self,
        binding: Binding,
        fallback: Fallback,
        adapter: SteeringAdapter | None,
        tokenizer: Any,
        requests: Iterable[Request],
        rows: int,
    ) -> None:
        self.binding, self.fallback, self.model = binding, fallback, binding.model
        self.adapter, self.tokenizer = adapter, tokenizer
        self.wanted = rows
        self._requests = iter(requests)
        self._waiting: deque[Request] = deque()
        self._place = 0
        self._held: _Prompted | None = None  # wants more room than there is
        self._prefix: PromptCache | None = None  # of the last prompt, if the next may use it
        self._attachment: RowAttachment | None = None
        self._running: dict[Answer, _Prompted] = {}
        self._free: list[int] = []
        self._cache: EngineCache | None = None
        self._unable: str | None = None  # why there are none
        self._live: Live | None = None

    def run(self) -> Iterator[Written]:
        with model_lock(self.model):  # no other call may take the engine in between
            self._unable = self.binding.bind()
            if self._unable is None:
                self._cache = self.binding.lend()
        if self._cache is not None:
            self._cache.vacate()
            self._live = Live(self._cache)
        try:
            self._look_ahead(self.wanted)
            while self._waiting or self._running or self._held:
                yield from self._fill()
                if self._running:
                    yield from self._advance()
        finally:
            if self._attachment is not None:
                self._attachment.detach()
            if self._cache is not None:
                self.binding.give_back(self._cache)

    def _look_ahead(self, count: int) -> Request | None:
        """Has so many requests waiting, if there are; returns the first."""
        while len(self._waiting) < count:
            request = next(self._requests, None)
            if request is None:
                break
            self._waiting.append(request)
        return self._waiting[0] if self._waiting else None

    # rows

    def _fill(self) -> Iterator[Written]:
        """Gives free rows to waiting requests; yields answers that ended with their first token."""
        while self._held is not None or self._look_ahead(1) is not None:
            if self._running and not self._free:
                return
            one, self._held = self._held or self._prompt(), None
            if one.answer.ended:
                yield one.written()
            elif self._cache is not None and one.room > self._cache.capacity and self._running:
                self._held = one
                return
            else:
                self._seat(one)

    def _seat(self, one: _Prompted) -> None:
        cache, live, prefix, token = self._cache, self._live, one.prefix, one.token
        assert cache is not None and live is not None and prefix is not None and token is not None
        if one.room > cache.capacity:
            known = [request.room() for request in self._waiting]
            # with fewer requests than rows no more than these are to come
            count = cache.count or min(self.wanted, len(self._waiting) + 1)
            cache.reserve(count, max([one.room, *known]))
            self._free = list(range(count))[::-1]
        cache.allow_positions(prefix.position + one.room - prefix.length)
        one.answer.row = self._free.pop()
        steering = self.binding.steering(one.adapter, cache.spec)
        cache.adopt(one.answer.row, prefix.layers, 0, 0, prefix.length, prefix.position, steering)
        one.prefix = None  # its memory is transformers' cache
        self._running[one.answer] = one
        live.add(one.answer, token)

    def _advance(self) -> Iterator[Written]:
        assert self._live is not None
        started, running = time.perf_counter(), list(self._running.values())
        told = self._live.advance()
        share = (time.perf_counter() - started) / len(running)
        for one in running:
            one.seconds += share
        ended = [self._running.pop(answer) for answer in told if answer.ended]
        self._free += [one.answer.row for one in ended]
        for one in ended:
            yield one.written()

    # prompts

    def _prompt(self) -> _Prompted:
        """Reads the next request's prompt; where the engine cannot go on, writes its answer too."""
        started = time.perf_counter()
        request, place = self._waiting.popleft(), self._place
        self._place += 1
        if not isinstance(request, Request):
            raise DiveError(
                f"request {place} is {request!r}, want a dive.decode.continuous.Request"
            )
        if request.inputs["input_ids"].shape[0] != 1:
            count = request.inputs["input_ids"].shape[0]
            raise DiveError(f"request {place} has {count} sequences, want one")
        with refusals(request.settings):
            request = self._checked(request, place)
        if self._prefix is not None and self._prefix.inputs is not request.inputs:
            self._prefix = None
        plan = self._ruled_out(request)
        shared = plan is None and self._shares(request)
        shared = shared and (self._prefix is not None or self._next_shares(request))
        steering: Any = unsteered(self.model) if shared else self._steered(request)
        with model_lock(self.model), steering as steers, refusals(request.settings):
            if plan is None:
                one = self._read(request, place, shared)
            else:
                self.fallback.note(plan)
                one = self._by_transformers(request, place)
        one.adapter = self._own(request) if shared else steers[0]
        one.seconds = time.perf_counter() - started
        return one

    def _checked(self, request: Request, place: int) -> Request:
        """The request, with settings that mean something; DiveError."""
        twice = sorted(request.settings.keys() & {*request.inputs, "streamer"})
        if twice:
            raise DiveError(
                f"request {place} has {', '.join(twice)} among its settings; inputs and a streamer "
                "have fields of their own"
            )
        settings = given_arguments(self.model, (), request.settings, self.tokenizer)
        config = asked_config(self.model, settings)
        if config.num_return_sequences not in (None, 1):
            raise DiveError(
                f"num_return_sequences is {config.num_return_sequences}: one request has one answer"
            )
        seed = None if request.seed is None else as_seed(request.seed)
        return replace(request, settings=settings, seed=seed)

    def _ruled_out(self, request: Request) -> Plan | None:
        """Why the engine cannot decode it, as far as that is known before transformers is asked."""
        if self._unable is not None:
            return Plan("transformers", self._unable)
        return settings_plan(self.model, dict(request.settings))

    def _read(self, request: Request, place: int, shared: bool) -> _Prompted:
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
            """Is given what transformers made of the request, and returns what is to be seated."""
            if reason is not None:
                plan = Plan("transformers", reason)
            else:
                plan = call_plan(
                    cache.spec, model, generation_config, input_ids, kwargs, synced_gpus
                )
            self.fallback.note(plan)
            if plan.engine != "dive._C":
                if request.streamer is not None:
                    kwargs["streamer"] = request.streamer
                seed, device = request.seed, input_ids.device
                with (
                    drawing(seed, generation_config, logits_processor, device) as (own, config),
                    self._steered(request),  # by all of it, also where it was to be shared
                ):
                    output, watch = self.fallback.decode(
                        input_ids, own, stopping_criteria, config, **kwargs
                    )
                return _written(request, place, output, watch)
            new = (stopping_criteria.max_length or generation_config.max_length) - (
                input_ids.shape[1]
            )
            tell_context(cache.spec.context, input_ids.shape[1], new)
            prompt = input_ids.to(cache.spec.device)
            answer = _answer(request, prompt, new, logits_processor, stopping_criteria,
                             generation_config)  # fmt: skip
            one = _Prompted(place, answer, room=prompt.shape[1] + new)
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
            # read already: no image is looked at again
            ids = inputs["input_ids"]
            inputs = {"input_ids": ids, "position_ids": torch.arange(ids.shape[1])[None]}
            inputs["attention_mask"] = request.inputs.get("attention_mask", torch.ones_like(ids))
        return self.model.generate(
            **inputs, **request.settings, streamer=request.streamer, custom_generate=take_over
        )

    def _by_transformers(self, request: Request, place: int) -> _Prompted:
        settings = request.settings
        config = asked_config(self.model, settings)
        streamer, device = request.streamer, self.model.device
        with sampling_by(request.seed, config, settings, streamer, device) as own:
            given = {**request.inputs, **settings, **own, "streamer": streamer}
            output, watch = generate_watched(self.model, given, config)
        return _written(request, place, output, watch)

    # steering

    def _own(self, request: Request) -> SteeringAdapter | None:
        return self.adapter if request.adapter is None else request.adapter

    def _shares(self, request: Request) -> bool:
        """Whether nothing before its prompt's last token is steered."""
        if request.inputs["input_ids"].shape[1] < 2:
            return False
        if self._attachment is None and attachment_of(self.model) is not None:
            return False  # the caller's own, whatever it does
        own = self._own(request)
        return own is None or own.config.positions == "response"

    def _next_shares(self, request: Request) -> bool:
        following = self._look_ahead(1)
        return (
            following is not None and following.inputs is request.inputs and self._shares(following)
        )

    def _steered(self, request: Request) -> AbstractContextManager[PerRow]:
        """What steers one prompt at work; requests' own adapters are attached once for all."""
        if self._attachment is None and request.adapter is not None:
            self._attachment = RowAttachment(self.model, scoped=True)
        if self._attachment is None:
            return steered(self.model, self.adapter)
        return steered(self.model, (self._own(request),), self._attachment)


def _written(request: Request, place: int, output: Any, watch: Watch) -> _Prompted:
    """What transformers wrote, prompt included."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    length = watch.lengths(1)[0]
    tokens = sequences[0, request.inputs["input_ids"].shape[1] : length].tolist()
    error = length is not None
    answer = Answer(-1, 0, frozenset(), tokens=tokens, ended=True, error=error)
    return _Prompted(place, answer, engine="transformers")


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
