"""Drawing tokens so that an answer depends on its own seed and on nothing that runs beside it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GENERATION_MODES_MAPPING

SEEDS = 1 << 62  # a seed is drawn below this


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Draws what torch's own generator draws after `torch.manual_seed(seed)`."""
    return torch.Generator(device=device).manual_seed(seed)


def seed_of_this_call() -> int:
    """A seed from torch's own generator, so that `torch.manual_seed` repeats a call."""
    return int(torch.randint(SEEDS, ()))


def draw(scores: Tensor, own: torch.Generator | None) -> Tensor:
    """A token [1] by the scores [1, V], as transformers draws it for a batch of one."""
    return torch.multinomial(scores.softmax(-1), num_samples=1, generator=own)[:, 0]


class _Drawn(LogitsProcessor):
    """The last processor: every row's token is drawn here, and nothing else is left to draw."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [generator(seed, device) for seed in seeds]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        left = torch.full_like(scores, float("-inf"))
        for row, own in enumerate(self.generators):
            left[row, draw(scores[row : row + 1], own)] = 0.0
        return left


def seeded(seeds: Sequence[int], streamer: Any = None) -> Any:
    """A `custom_generate` for transformers' own sampling, row i drawn with the seed seeds[i].

    streamer: gets the tokens, as transformers gives a `custom_generate` function none.
    """

    def sample(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **more: Any,
    ) -> Any:
        processors = LogitsProcessorList([*(logits_processor or ())])
        processors.append(_Drawn(seeds, input_ids.device))
        if streamer is not None:
            more["streamer"] = streamer
        return getattr(type(model), GENERATION_MODES_MAPPING[GenerationMode.SAMPLE])(
            model,
            input_ids,
            logits_processor=processors,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            **more,
        )

    return sample
