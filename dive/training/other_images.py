"""A study's prompts with the images of other patients in place of its own.

Which images those are is drawn once for each study: a function of the seed and of its id.
"""

import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dive.data.study import Study
from dive.errors import DiveError
from dive.errors.counting import counted
from dive.prompting.demonstrations import case_names
from dive.training.examples import Example, in_memory
from dive.training.teacher import Teacher, TeacherPrompt

log = logging.getLogger(__name__)

OTHERS = 4  # patients whose images replace the query's


@dataclass
class Patch:
    """The entries along the first dimension in which a tensor differs from one of its shape."""

    index: Tensor
    values: Tensor


@dataclass
class OtherImage:
    """The prompt of a study with the images of another one.

    index: of the study whose images are shown. changed: the model inputs, as far as they differ
    from those of the study's own prompt, of which most are images of the demonstrations. alone: the
    own prompt of that study, where its image features are still to be computed.
    """

    index: int
    changed: dict[str, Tensor | Patch]
    alone: dict[str, Tensor] | None


@dataclass
class VisualPrompts:
    """The teacher's prompts of a study: its own, and those with other patients' images."""

    own: TeacherPrompt
    others: list[OtherImage]


class OtherImages:
    """The images that replace a study's own, and the teacher's prompts that show them.

    They are of other patients, one per patient: with as many images as its own where there are
    such, and those of its demonstrations, whose reports the teacher has before it, only where there
    are no others. With redrawn demonstrations those of the first epoch are shown.
    """

    def __init__(self, teacher: Teacher, seed: int) -> None:
        self.teacher = teacher
        self.examples = teacher.examples
        self.most = OTHERS  # that any study has, once `check` has looked
        self._seed = seed
        self._by_images: dict[int, list[int]] = {}  # studies by their number of images
        for index, study in enumerate(self.examples.studies):
            self._by_images.setdefault(len(study.images), []).append(index)

    def others(self, index: int, usable: Callable[[int], bool] = lambda _: True) -> list[int]:
        """The studies whose images replace those of this one: `OTHERS` other patients, or fewer
        where there are no more. `usable` is asked in the order of the draw."""
        studies = self.examples.studies
        taken, chosen = set(case_names(studies[index])), list[int]()
        for at in self._order(index):
            names = case_names(studies[at])
            if not taken.isdisjoint(names) or not usable(at):
                continue
            taken.update(names)
            chosen.append(at)
            if len(chosen) == OTHERS:
                break
        return chosen

    def _order(self, index: int) -> Iterator[int]:
        studies = self.examples.studies
        study = studies[index]
        draw = random.Random(hashlib.sha256(f"visual/{self._seed}/{study.id}".encode()).digest())
        shown = {name for one in self.teacher.demonstrations.of(study) for name in case_names(one)}
        late = []
        own = len(study.images)
        for count in (own, *sorted(self._by_images.keys() - {own})):
            for at in _shuffled(self._by_images[count], draw):
                if shown.isdisjoint(case_names(studies[at])):
                    yield at
                else:
                    late.append(at)
        yield from late

    def check(self) -> list[list[int]]:
        """The draw of every study, without a look at an image.

        Raises:
            DiveError: a study has no image, or all of them are of one patient.
        """
        drawn = []
        short_of = 0
        for index, study in enumerate(self.examples.studies):
            if not study.images:
                raise DiveError(f"{study.where}: has no image, which decisive='visual' needs")
            drawn.append(self.others(index))
            short_of += len(drawn[-1]) < OTHERS
            if not drawn[-1]:
                raise DiveError(
                    f"{study.where}: decisive='visual' replaces its image by those of other "
                    f"patients, and all {counted(len(self.examples), 'study')} to learn from are "
                    f"of one patient, want {OTHERS} others (at least 1)"
                )
        self.most = max(map(len, drawn))
        if short_of:
            log.warning(
                "decisive='visual': %s fewer than %d other patients to draw images from",
                "1 study has" if short_of == 1 else f"{short_of} studies have",
                OTHERS,
            )
        return drawn

    def prompts(
        self, example: Example, study: Study, bad_shown: dict[int, str], bad: dict[int, str]
    ) -> VisualPrompts:
        """The prompts from which the weights of a study are computed.

        An image that cannot be read is replaced by the next of the draw.

        Args:
            study: with its images in memory.
            bad_shown: filled with the reasons why demonstrations cannot be read, by pool index;
                bad: and why other studies' images cannot, by their index.

        Raises:
            DiveError: no demonstration or no other image is left; a prompt does not fit the
                context.
        """
        own, shown = self.teacher.prompt_and_shown(example, study, 0, bad_shown)
        made: list[OtherImage] = []

        def usable(at: int) -> bool:
            if at in self.examples.failed:
                return False
            try:
                made.append(self._with_images_of(at, example, study, own, shown))
            except _Unreadable as error:
                bad[at] = str(error)
                return False
            return True

        if not self.others(example.index, usable):
            raise DiveError(f"{study.where}: no image of another patient can be read")
        return VisualPrompts(own, made)

    def _with_images_of(
        self, at: int, example: Example, study: Study, own: TeacherPrompt, shown: Sequence[Study]
    ) -> OtherImage:
        prompter, features = self.teacher.prompter, self.examples.features
        try:
            other = in_memory(self.examples.studies[at])
        except DiveError as error:
            raise _Unreadable(str(error)) from error
        query = replace(study, images=other.images, views=other.views)
        try:
            prompt = prompter.encode(query, shown)
        except DiveError:
            try:
                prompter.encode_any_length(other)
            except DiveError as error:  # its image is refused by itself
                raise _Unreadable(str(error)) from error
            raise
        inputs = self.teacher.with_report(prompt, example, study)
        alone = None
        if features is not None and not features.holds(self.examples.studies[at]):
            alone = prompter.slim(prompter.encode_any_length(other))
        return OtherImage(at, _changed(inputs, own.inputs), alone)

    def states(self, example: Example, prompts: VisualPrompts) -> tuple[Tensor, list[Tensor]]:
        """The teacher's hidden states [T, D] of a study's own prompt, and of each of the others."""
        own, studies = prompts.own, self.examples.studies
        others = []
        for one in prompts.others:
            prompt = replace(own, inputs=_whole(one.changed, own.inputs))
            others.append(self.teacher.states(studies[one.index], prompt, one.alone))
        return self.teacher.states(studies[example.index], own, example.inputs), others


class _Unreadable(DiveError):
    """The error of another study's image."""


def _shuffled(items: Sequence[int], draw: random.Random) -> Iterator[int]:
    """Yield the items in a drawn order, in time that grows with how many are asked for."""
    moved: dict[int, int] = {}
    for index in range(len(items)):
        at = draw.randrange(index, len(items))
        yield items[moved.get(at, at)]
        moved[at] = moved.get(index, index)


def _changed(inputs: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor | Patch]:
    found: dict[str, Tensor | Patch] = {}
    for name, value in inputs.items():
        other = base.get(name)
        alike = other is not None and (other.shape, other.dtype) == (value.shape, value.dtype)
        if other is None or not alike or not value.ndim:
            found[name] = value
            continue
        differs = value != other
        index = (differs if value.ndim == 1 else differs.flatten(1).any(1)).nonzero().squeeze(1)
        found[name] = Patch(index, value[index])
    return found


def _whole(changed: Mapping[str, Tensor | Patch], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in changed.items():
        if isinstance(value, Patch):
            whole = base[name]
            if len(value.index):
                whole = whole.index_copy(0, value.index, value.values)
            value = whole
        found[name] = value
    return found
