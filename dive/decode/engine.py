"""The engine's rows: caches taken over from transformers, steps, and the answers they write."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dive.backbone.structure import decoder
from dive.decode.model_check import check_modules, state_of
from dive.decode.sampling import draw
from dive.decode.spec import DecoderSpec
from dive.decode.usable_logits import NO_TOKEN, most_likely, removes_them, usable, where_usable
from dive.errors import DiveError

_POSITIONS = 512  # tables of cos and sin grow by so many
_ROOM = 64  # rows are given room in steps of so many tokens


class Rows:
    """A `dive._C.Engine` of one model, and the room that it has for sequences.

    capacity: tokens, prompt and answer, that each of the `count` rows has room for.
    """

    def __init__(self, module: Any, spec: DecoderSpec, model: Any) -> None:
        self.spec, self.model, self._module = spec, model, module
        self._signature = _signature(model, spec)
        self.engine = module.Engine(spec.describe(_POSITIONS))
        self.count = self.capacity = 0
        self._positions = _POSITIONS

    def moved(self) -> bool:
        """Whether the model is no longer what was bound; raises `Unsupported` as `read` does."""
        try:
            if self._signature != _signature(self.model, self.spec):
                return True
            check_modules(self.model, self.spec.path, self.spec.head)
        except AttributeError:
            return True  # a module was replaced by one of another kind
        return False

    def vacate(self) -> None:
        """No row and no room, until some is reserved."""
        self.count = self.capacity = 0

    def reserve(self, count: int, capacity: int) -> None:
        """Room for so many sequences; what the rows held is gone. DiveError: out of memory.

        On a CPU the engine works with as many threads as torch does (torch.set_num_threads), up to
        the cores there are.
        """
        self.vacate()
        self._use_stream()
        on_gpu = self.spec.device.type == "cuda"
        if not on_gpu:
            threads = min(torch.get_num_threads(), self._module.physical_cores())
            if threads != self.engine.threads:
                self.engine.threads = threads
        # in steps, so that a call much like the last finds its room, and its graphs on a GPU, ready
        capacity = -(-capacity // _ROOM) * _ROOM
        try:
            self.engine.reserve(count, capacity)
        except (RuntimeError, MemoryError) as error:
            if not (on_gpu and "out of memory" in str(error)):
                raise DiveError(f"decoding: {error}") from None
            torch.cuda.empty_cache()  # torch holds what the prompt's forward gave back
            try:
                self.engine.reserve(count, capacity)
            except RuntimeError as again:
                raise DiveError(f"decoding: {again}") from None
        self.count, self.capacity = count, capacity

    def allow_positions(self, positions: int) -> None:
        """Tables of the rotary embedding for positions below this one."""
        if positions > self._positions:
            whole = -(-positions // _POSITIONS) * _POSITIONS
            self.engine.set_ropes(self.spec.ropes(whole))
            self._positions = whole

    def adopt(
        self,
        row: int,
        layers: Sequence[Any],
        source: int,
        pad: int,
        length: int,
        position: int,
        steering: list[Any] | None,
    ) -> None:
        """Takes sequence `source` of a transformers cache over into a row.

        layers: of the cache; pad: positions at its left that are none of the sequence's; length:
        tokens read so far, without them; position: the rotary position of the next one.
        """
        self._use_stream()
        # of a decoder whose last layers were cut off, transformers' cache has some that are empty
        for index, layer in enumerate(layers[: len(self.spec.layers)]):
            # a sliding layer keeps the last ones
            first = pad + length - layer.keys.shape[-2]
            start = max(first, pad)
            kept = slice(start - first, None)
            keys, values = layer.keys[source, :, kept], layer.values[source, :, kept]
            self.engine.adopt(index, row, start - pad, keys, values)
        self.engine.start_row(row, length, position)
        self.engine.steer_row(row, steering)

    def step(self, rows: Tensor, tokens: Tensor, logits: Tensor | None = None) -> Tensor:
        """One token for each of these rows; returns the most likely ones after them, NO_TOKEN where
        the logits say nothing (`dive.decode.usable_logits`).

        tokens and what is returned: int64 [n] on the model's device; rows: int64 [n] on the CPU.
        logits: float32 [count, vocabulary] on the device, of which the rows' own are written.
        """
        self._use_stream()
        following = torch.empty_like(tokens)
        try:
            self.engine.step(tokens, rows, following, logits)
        except ValueError as error:  # its weights were moved or freed since it was bound
            raise DiveError(f"decoding: {error}") from None
        return following

    def _use_stream(self) -> None:
        """Puts the engine's work behind what torch has under way on a GPU."""
        if self.spec.device.type == "cuda":
            self.engine.use_stream(torch.cuda.current_stream(self.spec.device).cuda_stream)


class Chooser:
    """Chooses one answer's tokens by transformers' processors, as for a batch of one."""

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
        # one more: a token may be chosen behind the end before it is known to be that
        self.ids = prompt.new_zeros(1, self.length + longest + 1)
        self.ids[:, : self.length] = prompt
        self.processors, self.criteria = processors, criteria
        self.sample, self.generator = sample, generator
        self.mends = removes_them(processors)

    def choose(self, logits: Tensor) -> Tensor:
        """The next token [1] by logits [1, V], which may be written to; NO_TOKEN where they, or
        what processors made of them, say nothing."""
        good = None if self.mends else usable(logits)
        if good is not None:
            logits = where_usable(logits, good)
        scores = self.processors(self.ids[:, : self.length], logits)
        token = draw(scores, self.generator) if self.sample else most_likely(scores)
        if good is not None:
            token = torch.where(good, token, NO_TOKEN)
        self.ids[:, self.length] = token.clamp(min=0)  # processors look tokens up
        self.length += 1
        return token

    def stops(self) -> bool:
        """Whether a criterion of the caller's own ends the answer here."""
        if self.criteria is None:
            return False
        return bool(self.criteria(self.ids[:, : self.length], None).all())


@dataclass(eq=False)
class Answer:
    """One answer in the making.

    chooser: None takes what the engine finds most likely. error: the logits for the next token
    said nothing.
    """

    row: int
    longest: int
    ends: frozenset[int]
    chooser: Chooser | None = None
    streamer: Any = None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    error: bool = False

    def take(self, token: int) -> None:
        """The next token, or NO_TOKEN."""
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
    """The answers that are being written: one step gives each of them one token more.

    behind: read a step's tokens only once the next step is on its way, as suits a device that
        works by itself. An answer that ended then has run one step for nothing.
    """

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.behind = device.type == "cuda"
        self.answers: list[Answer] = []
        self._tokens = torch.empty(0, dtype=torch.long, device=device)  # what is run next
        self._places = torch.empty(0, dtype=torch.long)  # the rows in which, on the CPU
        self._unread: tuple[list[Answer], Tensor, Any] | None = None
        self._logits: Tensor | None = None

    def add(self, answer: Answer, token: Tensor) -> None:
        """token [1]: what the answer's row is to run next."""
        self.answers.append(answer)
        self._tokens = torch.cat([self._tokens, token.to(self.device)])
        self._seat()
        if answer.chooser is not None and answer.chooser.criteria is not None:
            self.behind = False  # it wants to see every token

    def advance(self) -> list[Answer]:
        """One step; returns the answers that got a token. Those that `ended` run no further."""
        logits = self._scores()
        new = self.rows.step(self._places, self._tokens, logits)
        if logits is not None:
            for place, answer in enumerate(self.answers):
                if answer.chooser is not None:
                    own = logits[answer.row : answer.row + 1]
                    new[place : place + 1] = answer.chooser.choose(own)
        told = self._read(new)
        left = [place for place, answer in enumerate(self.answers) if not answer.ended]
        if len(left) < len(self.answers):
            self.answers = [self.answers[place] for place in left]
            new = new[torch.tensor(left, dtype=torch.long, device=self.device)]
            self._seat()
        self._tokens = new
        return told

    def _read(self, new: Tensor) -> list[Answer]:
        """Reads the tokens of the step that was just launched or, `behind`, of the one before.

        Where `behind` has just ended both are read; each answer is told of once.
        """
        steps = [] if self._unread is None else [self._unread]
        steps.append((list(self.answers), *self._to_host(new)))
        self._unread = steps.pop() if self.behind else None
        told: dict[Answer, None] = {}
        for answers, tokens, arrived in steps:
            if arrived is not None:
                arrived.synchronize()
            for answer, token in zip(answers, tokens.tolist(), strict=True):
                if not answer.ended:
                    answer.take(token)
                    told[answer] = None
        return list(told)

    def _to_host(self, new: Tensor) -> tuple[Tensor, Any]:
        """The tokens, and on a GPU the event after which they are there.

        The copy stands right behind its own step: whoever waits for it does not wait for the next.
        """
        if self.device.type != "cuda":
            return new, None
        host = torch.empty(new.shape, dtype=new.dtype, pin_memory=True)
        host.copy_(new, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return host, event

    def _seat(self) -> None:
        self._places = torch.tensor([answer.row for answer in self.answers], dtype=torch.long)

    def _scores(self) -> Tensor | None:
        """Room for logits, where any token is not simply the most likely one."""
        if all(answer.chooser is None for answer in self.answers):
            return None
        if self._logits is None or self._logits.shape[0] != self.rows.count:
            size = (self.rows.count, self.rows.spec.vocabulary)
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


def _signature(model: Any, spec: DecoderSpec) -> tuple[Any, ...]:
    """The modules and weights that the engine was bound to; another one means to bind again."""
    text: Any = decoder(model)
    modules = (text, model.get_output_embeddings(), *text.layers)
    weights = tuple((id(w), w.data_ptr(), w.dtype) for w in spec.weights())
    return (tuple(map(id, modules)), weights, state_of(text))
