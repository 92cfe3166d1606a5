"""Drawing tokens so that an answer depends on its own seed, and on nothing that runs meanwhile."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GENERATION_MODES_MAPPING

from dive.decode.usable_logits import NO_TOKEN, is_distribution, where_usable
from dive.errors import DiveError
from dive.errors.checks import is_whole

SEEDS = 1 << 62  # a seed is drawn below this


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that draws what torch's own draws after `torch.manual_seed(seed)`."""
    return torch.Generator(device=device).manual_seed(seed)


def seed_of_this_call() -> int:
    """A seed from torch's own generator, so that `torch.manual_seed` repeats a call."""
    return int(torch.randint(SEEDS, ()))


def draw(scores: Tensor, own: torch.Generator | None) -> Tensor:
    """Draws a token [B] by the scores [B, V], as transformers draws it for a batch of this size.

    NO_TOKEN where the scores are no distribution; such a row draws as many numbers as any other.
    """
    good = is_distribution(scores)
    chances = where_usable(scores, good).softmax(-1)
    token = torch.multinomial(chances, num_samples=1, generator=own)[:, 0]
    return torch.where(good, token, NO_TOKEN)


class _Drawn(LogitsProcessor):
    """The last logits processor: it draws each row's token and leaves no other to choose."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [generator(seed, device) for seed in seeds]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        left = torch.full_like(scores, float("-inf"))
        for row, own in enumerate(self.generators):
            token = draw(scores[row : row + 1], own)
            # of a row that is no distribution no token is left, which the watch notices
            left[row, token.clamp(min=0)] = torch.where(token < 0, float("-inf"), 0.0)
        return left


def as_seed(given: Any) -> int:
    """Returns a seed as an int, of a whole number of any type; DiveError for anything else."""
    if not is_whole(given) or not 0 <= int(given) < SEEDS:
        raise DiveError(f"seed is {given!r}, want a whole number from 0 to {SEEDS - 1}")
    return int(given)


@contextmanager
def seeding(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators inside, as `torch.manual_seed(seed)` does, and restores them after.

    None: they are used as they are.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else ()):
        torch.manual_seed(seed)
        yield


@contextmanager
def drawing(
    seed: int | None, config: Any, processors: Any, device: torch.device
) -> Iterator[tuple[LogitsProcessorList, Any]]:
    """Yields processors and config with which transformers draws a row's tokens by `seed` alone.

    Beam sampling draws by no processor, and uses torch's generators, which all threads share.
    """
    given = LogitsProcessorList(processors or ())
    if seed is None:
        yield given, config
    elif config.get_generation_mode() == GenerationMode.SAMPLE:
        yield LogitsProcessorList([*given, _Drawn([seed], device)]), _of_drawn(config)
    else:
        with seeding(seed, device):
            yield given, config


def _of_drawn(config: Any) -> Any:
    """The config for scores of `_Drawn`: greedy, as only the drawn token is left to choose."""
    config = copy.copy(config)
    config.do_sample = False
    return config


@contextmanager
def sampling_by(
    seed: int | None, config: Any, settings: Any, streamer: Any, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Yields arguments of `model.generate` with which it samples its one row by `seed` alone."""
    mode = config.get_generation_mode(settings.get("assistant_model"))
    if seed is None or mode != GenerationMode.SAMPLE or "custom_generate" in settings:
        with seeding(seed, device):
            yield {}
    else:
        yield {"custom_generate": seeded([seed], streamer, bool(settings.get("synced_gpus")))}


def seeded(seeds: Sequence[int], streamer: Any = None, synced_gpus: bool = False) -> Any:
    """A `custom_generate` for transformers' own sampling, row i drawn with the seed seeds[i].

    streamer, synced_gpus: transformers passes neither to a `custom_generate` function.
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
        more["synced_gpus"] = synced_gpus
        return getattr(type(model), GENERATION_MODES_MAPPING[GenerationMode.SAMPLE])(
            model,
            input_ids,
            logits_processor=processors,
            stopping_criteria=stopping_criteria,
            generation_config=_of_drawn(generation_config),
            **more,
        )

    return sample
