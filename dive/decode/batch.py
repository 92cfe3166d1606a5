"""One call of `generate` on a batch: transformers' decoding loop, with the engine's steps."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from dive.backbone.kv_cache import filled_layers
from dive.decode.answers import Answer, Live, ends_of, plain_stop
from dive.decode.engine import EngineCache
from dive.decode.prompt_cache import last_position
from dive.decode.sampling import draw
from dive.decode.usable_logits import (
    NO_TOKEN,
    most_likely,
    most_likely_next,
    removes_them,
    usable,
    where_usable,
)

log = logging.getLogger(__name__)


def warn_of_context(context: int | None, prompt: int, new: int) -> None:
    """Warns, as transformers does, where a prompt and the longest answer exceed the context.

    No error: the answer may end before, and the rotary embedding is defined beyond.

    context, prompt, new: tokens; a context of None has no limit.
    """
    if context is not None and prompt + new > context:
        log.warning(
            "a prompt of %d tokens and %d new ones may exceed the model's context of %d; text "
            "beyond it may be worthless", prompt, new, context,
        )  # fmt: skip


class BatchDecoding:
    """A batch with a common prefill, decoded until its last row ends.

    failed: rows whose logits became unusable (`usable_logits`), after `decode`; padding follows
        their answers.
    """

    def __init__(
        self,
        model: Any,
        cache: EngineCache,
        input_ids: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: Any,
        streamer: Any,
    ) -> None:
        self.model, self.cache = model, cache
        self.processors, self.criteria, self.config = processors, criteria, config
        self.streamer = streamer
        self.failed: list[int] = []
        self.mends = removes_them(processors)
        self.device = cache.spec.device
        self.input_ids = input_ids.to(self.device)
        self.batch, self.prompt = input_ids.shape
        self.longest = criteria.max_length or config.max_length
        self.plain_stop = plain_stop(criteria)
        self.eos = ends_of(criteria)
        self.pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        pad_token = config._pad_token_tensor
        self.padding = 0 if pad_token is None else int(pad_token)
        self.ids = self.input_ids.new_full((self.batch, self.longest), self.padding)
        self.ids[:, : self.prompt] = self.input_ids

    def check_context(self, model_kwargs: dict[str, Any]) -> None:
        """Warns where the longest row may exceed the context, and stores the padding per row."""
        mask = model_kwargs.get("attention_mask")
        self.pad = [0] * self.batch if mask is None else (mask == 0).sum(-1).tolist()
        new = self.longest - self.prompt
        warn_of_context(self.cache.spec.context, self.prompt - min(self.pad), new)

    def prefill(
        self, model_kwargs: dict[str, Any], steerings: Sequence[list[Any] | None]
    ) -> Tensor:
        """Runs the model on the prompt, copies its KV cache to the engine, and returns the logits.

        steerings: one per row. Returns the float32 logits [B, V] after the prompt.
        """
        inputs = self.model.prepare_inputs_for_generation(
            self.input_ids, is_first_iteration=True, **model_kwargs
        )
        outputs = self.model(**inputs, return_dict=True)
        last = last_position(inputs)
        if last is None:
            positions = [self.prompt - pad for pad in self.pad]
        else:
            positions = (last + 1).expand(self.batch).tolist()
        self.cache.allow_positions(max(positions) + self.longest - self.prompt)
        self.cache.reserve(self.batch, self.longest - min(self.pad))
        layers = filled_layers(outputs, self.prompt)
        for row, pad in enumerate(self.pad):
            length, position = self.prompt - pad, positions[row]
            self.cache.copy_cache(row, layers, row, pad, length, position, steerings[row])
        return outputs.logits[:, -1].to(copy=True, dtype=torch.float32)

    def decode(self, scores: Tensor) -> Tensor:
        """Decodes from `scores`, the logits [B, V] after the prompt; returns prompt and answers."""
        greedy = not self.config.do_sample and not self.processors and self.plain_stop
        length = self._most_likely(scores) if greedy else self._chosen(scores)
        if self.streamer is not None:
            self.streamer.end()
        return self.ids[:, :length].contiguous()

    def _most_likely(self, scores: Tensor) -> int:
        """Greedy decoding, until each row's own end; returns the length of the longest."""
        tokens, live = most_likely_next(scores), Live(self.cache)
        longest, ends = self.longest - self.prompt, self.eos
        answers = [Answer(slot, longest, ends) for slot in range(self.batch)]
        for answer, token in zip(answers, tokens.tolist(), strict=True):
            answer.take(token)
            if not answer.ended:
                live.add(answer, tokens[answer.slot : answer.slot + 1])
        self._stream(answers)
        while live.answers:
            advanced = live.advance()
            if advanced:
                self._stream(advanced)
        for answer in answers:
            own = torch.tensor(answer.tokens, device=self.device)
            self.ids[answer.slot, self.prompt : self.prompt + len(answer.tokens)] = own
        self.failed = [answer.slot for answer in answers if answer.error]
        return self.prompt + max(len(answer.tokens) for answer in answers)

    def _stream(self, advanced: list[Answer]) -> None:
        if self.streamer is not None:
            tokens = torch.full((self.batch,), self.padding)
            for answer in advanced:
                if not answer.error:
                    tokens[answer.slot] = answer.tokens[-1]
            self.streamer.put(tokens)

    def _chosen(self, logits: Tensor) -> int:
        """Decoding by processors, sampling and the caller's own criteria; returns the length."""
        rows = torch.arange(self.batch)  # on the CPU, as the engine takes them
        alive = [True] * self.batch
        failed = torch.zeros(self.batch, dtype=torch.bool, device=self.device)
        length = self.prompt
        while True:
            # a copy, since processors may write; of all rows, as the generator draws for all
            tokens = self._choose(self.ids[:, :length], logits.clone())
            failing = tokens < 0
            tokens = tokens.clamp(min=0)
            if self.pads and rows.shape[0] < self.batch:
                running = torch.tensor(alive, device=self.device)
                failing &= running  # a row that has ended does not fail afterwards
                tokens = torch.where(running, tokens, self.padding)
            failed |= failing
            tokens = torch.where(failed, self.padding, tokens)
            self.ids[:, length] = tokens
            length += 1
            if self.streamer is not None:
                self.streamer.put(tokens.cpu())
            if self._stop(self.ids[:, :length], tokens, failed, alive):
                self.failed = failed.nonzero()[:, 0].tolist()
                return length
            if self.pads and sum(alive) < rows.shape[0]:
                left = [row for row, live in enumerate(alive) if live]
                rows = torch.tensor(left)
            self.cache.step(rows, tokens[rows.to(self.device)], logits)

    def _choose(self, ids: Tensor, logits: Tensor) -> Tensor:
        good = torch.ones_like(logits[:, 0], dtype=torch.bool) if self.mends else usable(logits)
        scores = self.processors(ids, where_usable(logits, good))  # type: ignore[arg-type]
        tokens = draw(scores, None) if self.config.do_sample else most_likely(scores)
        return torch.where(good, tokens, NO_TOKEN)

    def _stop(self, ids: Tensor, tokens: Tensor, failed: Tensor, alive: list[bool]) -> bool:
        """Marks the rows that end with these tokens, or have no token; True when all have."""
        if not self.plain_stop:
            ended = self.criteria(ids, None) | failed  # type: ignore[arg-type]
            for row, done in enumerate(ended.tolist()):
                alive[row] = alive[row] and not done
        elif self.eos:
            last = torch.where(failed, NO_TOKEN, tokens)
            for row, token in enumerate(last.tolist()):
                if token < 0 or token in self.eos:
                    alive[row] = False
        return ids.shape[1] >= self.longest or not any(alive)
