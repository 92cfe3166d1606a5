"""The data set of a training, loaded in its own process or in workers: examples, with the teacher's
prompt as long as its hidden states are not known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from dive.errors import DiveError
from dive.training.examples import Example, Examples, in_memory
from dive.training.other_images import OtherImage, Patch, VisualPrompts
from dive.training.teacher import Teacher, TeacherPrompt
from dive.training.visual_weights import VisualWeights
from dive.training.workers import settle


@dataclass
class Loaded:
    """One item of the data set.

    example: None where the trainer has it in memory, or where there is an error. error: why the
    study cannot be used. bad: why demonstrations cannot be read, by their index in the pool;
    bad_others: why studies cannot whose images were to replace its own, by their index.
    """

    index: int
    example: Example | None = None
    teacher: TeacherPrompt | None = None
    visual: VisualPrompts | None = None
    error: str | None = None
    bad: dict[int, str] = field(default_factory=dict)
    bad_others: dict[int, str] = field(default_factory=dict)

    # Workers send tensors as plain arrays: torch would pass them through shared memory, of which
    # containers have little (64 MB), and open files, of which a batch would need dozens.
    def __getstate__(self) -> dict[str, Any]:
        return {one.name: _packed(getattr(self, one.name)) for one in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, _unpacked(value))


class Feed(Dataset):
    """The examples as `Loaded` items.

    teacher: whose hidden states the loss needs. visual: the weights, if they are the images'.
    epoch: of the teacher's draws, to be set before workers start.
    """

    def __init__(
        self,
        examples: Examples,
        teacher: Teacher | None = None,
        visual: VisualWeights | None = None,
    ) -> None:
        self.examples = examples
        self.teacher = teacher
        self.visual = visual
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Loaded:
        if get_worker_info() is not None:
            settle()
        examples, teacher, visual = self.examples, self.teacher, self.visual
        if index in examples.failed:
            return Loaded(index, error=examples.failed[index])
        kept = examples.kept(index)
        seen = teacher is None or teacher.knows(index)
        weighed = visual is None or visual.knows(index)
        if kept is not None and seen and weighed:
            return Loaded(index)
        loaded = Loaded(index)
        try:
            study = in_memory(examples.studies[index])
            example = examples.make(index, study) if kept is None else kept
            if visual is not None and not weighed:
                images, bad = visual.images, (loaded.bad, loaded.bad_others)
                loaded.visual = images.prompts(example, study, *bad)
                seen = seen or images.teacher.drawn(self.epoch) == 0  # its own prompt serves both
            if teacher is not None and not seen:
                loaded.teacher = teacher.prompt(example, study, self.epoch, loaded.bad)
        except DiveError as error:
            loaded.error = str(error)
            return loaded
        if kept is None:
            loaded.example = example
        return loaded


def as_they_come(loaded: Sequence[Loaded]) -> list[Loaded]:
    """The items as they are: the trainer collates those that are usable."""
    return list(loaded)


@dataclass
class _Array:
    values: np.ndarray
    dtype: torch.dtype


def _packed(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return _inside(value, _packed)
    bits = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
    return _Array(bits.numpy(), value.dtype)


def _unpacked(value: Any) -> Any:
    if isinstance(value, _Array):
        return torch.from_numpy(value.values).view(value.dtype)
    return _inside(value, _unpacked)


def _inside(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: change(one) for name, one in value.items()}
    if isinstance(value, Example):
        return replace(value, inputs=change(value.inputs))
    if isinstance(value, TeacherPrompt):
        return replace(value, inputs=change(value.inputs), alone=change(value.alone))
    if isinstance(value, VisualPrompts):
        return VisualPrompts(change(value.own), [change(one) for one in value.others])
    if isinstance(value, OtherImage):
        return replace(value, changed=change(value.changed), alone=change(value.alone))
    if isinstance(value, Patch):
        return Patch(change(value.index), change(value.values))
    return value
