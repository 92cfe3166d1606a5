"""Unusable logits: the answer ends there, and no other answer is affected.

A softmax over NaN, over +inf or over -inf alone is no distribution, and argmax takes a NaN for the
most likely token. One rule holds for the engine, for transformers and for processors of the
caller's own: the largest score must be a finite number. A single -inf is a forbidden token.

A model's own logits must not all be the same, either: an RMS norm makes zeros of states whose
squares are infinite. Scores that processors made may be.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import InfNanRemoveLogitsProcessor, LogitsProcessor, LogitsProcessorList
from transformers.generation.configuration_utils import GenerationMode

NO_TOKEN = -1  # as dive._C's kNoToken


def most_likely(scores: Tensor) -> Tensor:
    """The most likely token [B] by scores [B, V], the first of equals; NO_TOKEN if not finite."""
    token = scores.argmax(-1)
    most = scores.gather(-1, token[:, None])[:, 0]
    return torch.where(most.isfinite(), token, NO_TOKEN)


def usable(logits: Tensor) -> Tensor:
    """Which rows [B] of a model's logits [B, V] are usable; without a host sync."""
    least, most = logits.aminmax(dim=-1)
    return most.isfinite() & ((least < most) | (logits.shape[-1] == 1))


def most_likely_next(logits: Tensor) -> Tensor:
    """`most_likely` by a model's own logits [B, V]; NO_TOKEN also where they are not `usable`."""
    return torch.where(usable(logits), logits.argmax(-1), NO_TOKEN)


def is_distribution(scores: Tensor) -> Tensor:
    """Which rows [B] of scores [B, V] are a distribution to draw from; without a host sync."""
    return scores.amax(-1).isfinite()


def where_usable(scores: Tensor, good: Tensor) -> Tensor:
    """The scores, with zeros for rows that are not `good`, which processors and samplers accept."""
    return torch.where(good[:, None], scores, 0.0)


def removes_them(processors: Sequence[Any]) -> bool:
    """Whether the processors replace NaN and infinities (remove_invalid_values=True)."""
    return any(isinstance(one, InfNanRemoveLogitsProcessor) for one in processors)


class Watch(LogitsProcessor):
    """A logits processor for transformers' own loops: ends and records rows with unusable scores.

    Scores that are all the same count where no other processor has changed them before. From then
    on the row, and with it all beams of its prompt, has no token but `end`. Without a host sync:
    the record is read after the loop.
    mends: NaN and infinities are replaced, so that only the scores after it count.
    assisted: the assistant's own scores go through the processors, and may all be the same.
    """

    def __init__(
        self,
        end: int,
        beams: int = 1,
        padding: int | None = None,
        mends: bool = False,
        assisted: bool = False,
    ) -> None:
        self.end, self.beams, self.mends, self.assisted = end, beams, mends, assisted
        self.padding = end if padding is None else padding
        self._lengths: Tensor | None = None  # [rows] of the ids when it happened; -1: it did not

    @classmethod
    def of(cls, config: Any, assistant: Any = None) -> "Watch":
        """The watch for the decoding by a generation config and an assistant model, if any."""
        eos, padding = config.eos_token_id, config.pad_token_id
        ends = [*eos] if isinstance(eos, (list, tuple)) else [eos]
        known = [one for one in (*ends, padding) if one is not None]
        mends = bool(getattr(config, "remove_invalid_values", False))
        assisted = config.get_generation_mode(assistant) == GenerationMode.ASSISTED_GENERATION
        end = int(known[0]) if known else 0
        return cls(end, config.num_beams or 1, padding, mends, assisted)

    def among(self, processors: Sequence[Any] | None) -> LogitsProcessorList:
        """The processors with this watch before them, as they may not accept such scores, and after
        them, as they may produce some."""
        given = [] if processors is None else [*processors]
        first = () if self.mends or removes_them(given) else (self,)
        return LogitsProcessorList([*first, *given, _Again(self)])

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        good = is_distribution(scores) if self.assisted else usable(scores)
        return self.look(input_ids, scores, good)

    def look(self, input_ids: Any, scores: Any, good: Tensor) -> Tensor:
        """The scores, or those that end a row which is not `good` [rows]."""
        bad = ~good
        if self._lengths is None:
            self._lengths = torch.full(bad.shape, -1, device=bad.device)
        bad = bad.view(-1, self.beams).any(-1).repeat_interleave(self.beams)
        self._lengths = torch.where(bad & (self._lengths < 0), input_ids.shape[1], self._lengths)
        only = torch.full_like(scores[:1], float("-inf"))
        only[:, self.end] = 0.0
        return torch.where((self._lengths >= 0)[:, None], only, scores)

    def lengths(self, rows: int) -> list[int | None]:
        """The length of prompt and answer before unusable scores, for each of the output's `rows`;
        None where there were none."""
        if self._lengths is None:
            return [None] * rows
        each = self._lengths.view(-1, self.beams)[:, 0].tolist()
        return [
            None if each[row * len(each) // rows] < 0 else each[row * len(each) // rows]
            for row in range(rows)
        ]

    def cut(self, output: Any) -> list[int]:
        """Pads the output of `generate`, in place, after unusable scores; returns these rows."""
        sequences = output if isinstance(output, Tensor) else output.sequences
        ended = []
        for row, length in enumerate(self.lengths(sequences.shape[0])):
            if length is not None:
                sequences[row, length:] = self.padding
                ended.append(row)
        return ended


class _Again(LogitsProcessor):
    """The same watch a second time, as transformers refuses to take a processor twice."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self.watch.look(input_ids, scores, is_distribution(scores))


def generate_watched(model: Any, given: Mapping[str, Any], config: Any) -> tuple[Any, Watch]:
    """Runs `model.generate(**given)`, which decodes by `config`; returns its output and watch."""
    watch = Watch.of(config, given.get("assistant_model"))
    processors = watch.among(given.get("logits_processor"))
    return model.generate(**{**given, "logits_processor": processors}), watch
