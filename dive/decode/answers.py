"""Answers being decoded: how their tokens are chosen, and the decode steps of several together."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from dive.decode.engine import EngineCache
from dive.decode.sampling import draw
from dive.decode.usable_logits import NO_TOKEN, most_likely, removes_them, usable, where_usable


class Chooser:
    """One answer's choice of tokens by transformers' processors, as for a batch of one."""

    def __init__(
        self,
        prompt: Tensor,
        longest: int,
        processors: Any,
        criteria: Any,
        sample: bool,
        generator: torch.Generator | None,
    ) -> None:
        self.length = prompt.shape[1]
        # one more: a token may be chosen after the end before the end is known
        self.ids = prompt.new_zeros(1, self.length + longest + 1)
        self.ids[:, : self.length] = prompt
        self.processors, self.criteria = processors, criteria
        self.sample, self.generator = sample, generator
        self.mends = removes_them(processors)

    def choose(self, logits: Tensor) -> Tensor:
        """The next token [1] by logits [1, V], which may be written to.

        NO_TOKEN where they, or the scores that processors made of them, are unusable.
        """
        good = None if self.mends else usable(logits)
        if good is not None:
            logits = where_usable(logits, good)
        scores = self.processors(self.ids[:, : self.length], logits)
        token = draw(scores, self.generator) if self.sample else most_likely(scores)
        if good is not None:
            token = torch.where(good, token, NO_TOKEN)
        self.ids[:, self.length] = token.clamp(min=0)  # processors use the ids as indices
        self.length += 1
        return token

    def stops(self) -> bool:
        """Whether a stopping criterion of the caller's own ends the answer here."""
        if self.criteria is None:
            return False
        return bool(self.criteria(self.ids[:, : self.length], None).all())


@dataclass(eq=False)
class Answer:
    """One answer being decoded.

    slot: of the KV cache. longest: most tokens. ends: ids of end tokens.
    chooser: None takes the engine's most likely token. error: the logits for the next token were
        unusable.
    """

    slot: int
    longest: int
    ends: frozenset[int]
    chooser: Chooser | None = None
    streamer: Any = None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    error: bool = False

    def take(self, token: int) -> None:
        """Appends the next token, or ends at NO_TOKEN."""
        if token < 0:
            self.error = self.ended = True
            if self.streamer is not None:
                self.streamer.end()
            return
        self.tokens.append(token)
        if self.streamer is not None:
            self.streamer.put(torch.tensor([token]))
        self.ended = (
            token in self.ends
            or len(self.tokens) >= self.longest
            or (self.chooser is not None and self.chooser.stops())
        )
        if self.ended and self.streamer is not None:
            self.streamer.end()


class Live:
    """The answers being decoded: one step gives each of them one more token.

    behind: read a step's tokens only after the next step's launch, as suits an asynchronous device.
        An answer that ended has then run one step for nothing.
    """

    def __init__(self, cache: EngineCache) -> None:
        self.cache, self.device = cache, cache.spec.device
        self.behind = self.device.type == "cuda"
        self.answers: list[Answer] = []
        self._tokens = torch.empty(
            0, dtype=torch.long, device=self.device
        )  # each answer's next input
        self._slots = torch.empty(0, dtype=torch.long)  # of each token, on the CPU
        self._unread: tuple[list[Answer], Tensor, Any] | None = None
        self._logits: Tensor | None = None

    def add(self, answer: Answer, token: Tensor) -> None:
        """Adds an answer, whose slot runs token [1] next."""
        self.answers.append(answer)
        self._tokens = torch.cat([self._tokens, token.to(self.device)])
        self._update_slots()
        if answer.chooser is not None and answer.chooser.criteria is not None:
            self.behind = False  # it must see every token

    def advance(self) -> list[Answer]:
        """Runs one decode step; returns the answers that got a token, drops those that ended."""
        logits = self._scores()
        new = self.cache.step(self._slots, self._tokens, logits)
        if logits is not None:
            for index, answer in enumerate(self.answers):
                if answer.chooser is not None:
                    own = logits[answer.slot : answer.slot + 1]
                    new[index : index + 1] = answer.chooser.choose(own)
        advanced = self._read(new)
        left = [index for index, answer in enumerate(self.answers) if not answer.ended]
        if len(left) < len(self.answers):
            self.answers = [self.answers[index] for index in left]
            new = new[torch.tensor(left, dtype=torch.long, device=self.device)]
            self._update_slots()
        self._tokens = new
        return advanced

    def _read(self, new: Tensor) -> list[Answer]:
        """Reads the tokens of the step that was just launched or, `behind`, of the one before.

        Where `behind` has just ended both are read; each answer is returned once.
        """
        steps = [] if self._unread is None else [self._unread]
        steps.append((list(self.answers), *self._to_host(new)))
        self._unread = steps.pop() if self.behind else None
        advanced: dict[Answer, None] = {}
        for answers, tokens, arrived in steps:
            if arrived is not None:
                arrived.synchronize()
            for answer, token in zip(answers, tokens.tolist(), strict=True):
                if not answer.ended:
                    answer.take(token)
                    advanced[answer] = None
        return list(advanced)

    def _to_host(self, new: Tensor) -> tuple[Tensor, Any]:
        """The tokens on the host, and on a GPU the event after which they have arrived.

        The copy is queued right after its own step, so that waiting for it does not wait for the
        next one.
        """
        if self.device.type != "cuda":
            return new, None
        host = torch.empty(new.shape, dtype=new.dtype, pin_memory=True)
        host.copy_(new, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return host, event

    def _update_slots(self) -> None:
        self._slots = torch.tensor([answer.slot for answer in self.answers], dtype=torch.long)

    def _scores(self) -> Tensor | None:
        """A buffer for logits [slots, V], or None where every answer is greedy."""
        if all(answer.chooser is None for answer in self.answers):
            return None
        if self._logits is None or self._logits.shape[0] != self.cache.slots:
            size = (self.cache.slots, self.cache.spec.vocabulary)
            self._logits = torch.empty(size, device=self.device)
        return self._logits


def ends_of(criteria: Any) -> frozenset[int]:
    """The tokens that end an answer by these stopping criteria."""
    return frozenset(
        int(index)
        for criterion in criteria
        if hasattr(criterion, "eos_token_id")
        for index in criterion.eos_token_id.flatten().tolist()
    )


def plain_stop(criteria: StoppingCriteriaList) -> bool:
    """Whether tokens and length alone end an answer; other criteria need all ids so far."""
    return all(type(one) in (MaxLengthCriteria, EosTokenCriteria) for one in criteria)
