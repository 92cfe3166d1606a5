"""Training examples: prompts and reports as tokens with classes and weights, in batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dive.data.study import Study
from dive.decisive.tokens import DecisiveTokens
from dive.errors import DiveError
from dive.prompting.batch import response_positions, response_targets
from dive.prompting.prompter import Prompter, Response
from dive.training.image_features import ImageCache, has_pixels

CACHE_BYTES = 4 << 30  # of encoded studies that are kept in memory between epochs


@dataclass
class Example:
    """One encoded study. `inputs` is the student's prompt followed by the report, as sequence
    tensors [1, T]; the report's tokens are the last `len(response.ids)` of them."""

    index: int
    inputs: dict[str, Tensor]
    prompt_length: int
    response: Response
    classes: list[int]
    weights: list[float]


class Examples(Dataset):
    """Studies encoded for one prompter, lazily; as many as fit into `CACHE_BYTES` are kept.

    failed: the reasons why studies could not be encoded and are left out, by index.
    """

    def __init__(
        self, studies: Sequence[Study], prompter: Prompter, weigher: DecisiveTokens
    ) -> None:
        self.studies = list(studies)
        self.prompter = prompter
        self.weigher = weigher
        self.features: ImageCache | None = None
        self.failed: dict[int, str] = {}
        self._kept: dict[int, Example] = {}
        self._bytes_left = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Example:
        kept = self.kept(index)
        return self.keep(self.make(index)) if kept is None else kept

    def kept(self, index: int) -> Example | None:
        """The example, if it is in memory; else None."""
        return self._kept.get(index)

    def keep(self, example: Example) -> Example:
        """Keep the example in memory if it fits, without pixels whose features are cached. Returns
        it as it is kept."""
        if self.features is not None and self.features.holds(self.studies[example.index]):
            inputs = {n: t for n, t in example.inputs.items() if not has_pixels([n])}
            self._drop(example.index)
            example = replace(example, inputs=inputs)
        size = _bytes(example)
        if example.index not in self._kept and size <= self._bytes_left:
            self._bytes_left -= size
            self._kept[example.index] = example
        return example

    def _drop(self, index: int) -> None:
        known = self._kept.pop(index, None)
        if known is not None:
            self._bytes_left += _bytes(known)

    def make(self, index: int, study: Study | None = None) -> Example:
        """Encode a study. `study` is the same with its images in memory, if they are already.

        Raises:
            DiveError: an image cannot be read, or the report is missing or too long for the
                context.
        """
        study = self.studies[index] if study is None else study
        response = self.prompter.response(study)
        prompt = self.prompter.encode(study)
        try:
            inputs = self.prompter.slim(self.prompter.with_response(prompt, response.ids))
        except DiveError as error:
            raise DiveError(f"{study.where}: {error}") from error
        classes, weights = weigh(self.weigher, study, response)
        length = prompt["input_ids"].shape[1]
        return Example(index, inputs, length, response, classes, weights)

    def model_inputs(
        self,
        inputs: dict[str, Tensor],
        studies: Sequence[Study],
        own: Sequence[Mapping[str, Tensor] | None] | None = None,
    ) -> dict[str, Any]:
        """`inputs`, which show `studies` in this order, on the model's device, with cached image
        features in place of pixels if there are any. own: see `ImageCache.fill`."""
        on_device = self.prompter.to_device(inputs)
        return on_device if self.features is None else self.features.fill(on_device, studies, own)

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Right-padded model inputs, and one entry per response token, study after study:

        positions [B, T] bool: the positions whose hidden states predict the response; index [N]
            int64: the same as indices into the flattened batch
        targets [N] int64, weights [N] float32, classes [N] int64
        studies: B indices into `self.studies`; response_lengths: tokens of each response. Lists of
            int: on a device they would cost a host sync in every step
        """
        lengths = [len(one.response.ids) for one in examples]
        if not examples:  # every study of the batch is left out
            none = torch.zeros(0, dtype=torch.int64)
            return {
                "inputs": {}, "positions": torch.zeros(0, 0, dtype=torch.bool), "index": none,
                "targets": none, "weights": torch.zeros(0), "classes": none, "studies": [],
                "response_lengths": [],
            }  # fmt: skip
        inputs = self.prompter.collate([one.inputs for one in examples], side="right")
        positions = response_positions(
            [one.prompt_length for one in examples], lengths, inputs["input_ids"].shape[1]
        )
        return {
            "inputs": inputs,
            "positions": positions,
            "index": positions.flatten().nonzero().squeeze(1),
            "targets": response_targets(inputs["input_ids"], positions),
            "weights": torch.tensor([w for one in examples for w in one.weights]),
            "classes": torch.tensor([c for one in examples for c in one.classes]),
            "studies": [one.index for one in examples],
            "response_lengths": lengths,
        }


def in_memory(study: Study) -> Study:
    """The study with its images decoded.

    Raises:
        DiveError: an image cannot be read.
    """
    return replace(study, images=tuple(study.load_images()))


def _bytes(example: Example) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in example.inputs.values())


def weigh(
    weigher: DecisiveTokens, study: Study, response: Response
) -> tuple[list[int], list[float]]:
    """The class and the weight of each token of a study's answer.

    Raises:
        DiveError: the annotation is missing or is of another text; names the study.
    """
    try:
        return weigher.weigh(response.text, response.offsets, len(response.ids))
    except DiveError as error:
        raise DiveError(f"{study.where}: {error}") from error
