"""The weights of a served model against those that an adapter was made on, by samples.

The fingerprint in an adapter (dive/backbone/fingerprint.py) lists samples in the order of the
transformers model's weights. vLLM fuses, shards and quantises weights as it loads them, but is
given each whole, under the checkpoint's name: there they are sampled. Checkpoints, transformers and
vLLM put different prefixes before the same names, so only what these do not change is compared.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from dive.backbone.fingerprint import MOST_PER_WEIGHT, compare_samples, sample_indices

_PREFIXES = {"model", "language_model", "vision_model", "text_model"}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LEAST = 4  # weights that must be known on both sides for a comparison to say anything


def bare_name(name: str) -> str:
    """A weight's name without what differs between versions of one checkpoint."""
    return ".".join(part for part in name.split(".") if part not in _PREFIXES)


class CheckpointSamples:
    """Samples of every weight that passed on its way into a model."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], Tensor] = {}

    def watch(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Passes `weights` on, and keeps some numbers of each that is plain floating point."""
        for name, weight in weights:
            size = weight.numel()
            if type(weight) in (Tensor, torch.nn.Parameter) and weight.dtype in _FLOATS and size:
                indices = sample_indices(size, MOST_PER_WEIGHT).to(weight.device)
                self._seen[bare_name(name), size] = weight.detach().take(indices).float().cpu()
            yield name, weight

    def same(self, fingerprint: dict[str, Any] | None) -> bool | None:
        """Whether these are the weights of a card's fingerprint; None where that is unknown."""
        if not fingerprint or not fingerprint.get("samples"):
            return None
        each, made_up = fingerprint["each"], set(fingerprint["made_up"])
        found: list[Tensor] = []
        unknown: list[int] = []
        for at, (name, size) in enumerate(fingerprint["weights"]):
            here = self._seen.get((bare_name(name), size))
            if here is None or at in made_up:
                unknown.append(at)
                here = torch.zeros(each)
            found.append(here[:each])
        if len(found) - len(unknown) < _LEAST:
            return None
        merged = "lora" in fingerprint["tuners"]
        return compare_samples(fingerprint["samples"], found, each, unknown, merged)
