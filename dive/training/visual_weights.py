"""Visual weights: how much the image changes what the teacher expects at each token of a report.

v_t = KL(p(. | image, prefix) || mean over other patients' images of p(. | other image, prefix)), in
nats and over the whole vocabulary, where p is the k-shot prompted backbone and only the query's
images are replaced. A token weighs 1 + (pathology_weight - 1) * (1 - exp(-v_t)), and 1 - exp(-KL)
bounds the squared total variation distance (Bretagnolle and Huber). v_t is a function of image and
prefix and not of the token that is written, so the weight moves no threshold between the tokens
that might be. The measure is VA-OPD's (arXiv 2605.21924).
"""

import hashlib
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dive.backbone.model_lock import model_lock
from dive.backbone.structure import Head, output_head
from dive.data.study import Study
from dive.decisive.tokens import EOS, PATHOLOGY, TEMPLATE, DecisiveTokens, Mention
from dive.errors import DiveError
from dive.errors.counting import counted
from dive.prompting.demonstrations import case_names
from dive.training.examples import Example, in_memory
from dive.training.teacher import Teacher, TeacherPrompt

log = logging.getLogger(__name__)

OTHERS = 4  # patients whose images replace the query's
SOURCE = f"how much the image changes what the teacher expects ({OTHERS} images of other patients)"
CHUNK_BYTES = 64 << 20  # of one buffer of log-probabilities
BUFFERS = 5  # that are held at a time


class EndAlone(DecisiveTokens):
    """Classes by which no token but the end is decisive, without a look at a lexicon."""

    def mentions(self, text: str) -> list[Mention]:
        return []


@dataclass
class Rows:
    """A tensor as the rows in which it differs from another one of its shape."""

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
    changed: dict[str, Tensor | Rows]
    alone: dict[str, Tensor] | None


@dataclass
class VisualPrompts:
    """The teacher's prompts of a study: its own, and those with other patients' images."""

    own: TeacherPrompt
    others: list[OtherImage]


class VisualWeights:
    """The visual weights of the training studies, each computed when it is needed first, and kept.

    With redrawn demonstrations they are those under the demonstrations of the first epoch: so they
    are a function of the study alone, and four of five prompts are run once and not in every epoch.
    The other images are drawn once for each study from those of other patients, one per patient:
    with as many images as its own where there are such, and those of its demonstrations, whose
    reports the teacher has before it, only where there are no others.
    """

    def __init__(self, teacher: Teacher, pathology: float, eos: float, seed: int) -> None:
        self.teacher = teacher
        self.examples = teacher.examples
        self._pathology, self._eos, self._seed = pathology, eos, seed
        self.most = OTHERS  # other images that any study has
        self._known: dict[int, Tensor] = {}  # float32 [T] on the CPU, by study
        self._by_images: dict[int, list[int]] = {}
        for index, study in enumerate(self.examples.studies):
            self._by_images.setdefault(len(study.images), []).append(index)

    def knows(self, index: int) -> bool:
        """Whether the weights of a study are known, so that no prompt is needed for them."""
        return index in self._known

    def of(self, index: int) -> Tensor:
        """v, float32 [T] in nats, of a study whose weights are known."""
        return self._known[index]

    # which images

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
        few = 0
        for index, study in enumerate(self.examples.studies):
            if not study.images:
                raise DiveError(f"{study.where}: has no image, which decisive='visual' needs")
            drawn.append(self.others(index))
            few += len(drawn[-1]) < OTHERS
            if not drawn[-1]:
                raise DiveError(
                    f"{study.where}: decisive='visual' replaces its image by those of other "
                    f"patients, and all {counted(len(self.examples), 'study')} to learn from are "
                    f"of one patient, want {OTHERS} others (at least 1)"
                )
        self.most = max(map(len, drawn))
        if few:
            log.warning(
                "decisive='visual': %s fewer than %d other patients to draw images from",
                "1 study has" if few == 1 else f"{few} studies have",
                OTHERS,
            )
        return drawn

    # prompts

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

    # weights

    def compute(self, example: Example, prompts: VisualPrompts) -> Tensor:
        """Compute the weights of a study, and return the teacher's hidden states [T, D] of its own
        prompt, which serve the loss, too.

        Raises:
            DiveError: the teacher's logits are not finite.
        """
        study = self.examples.studies[example.index]
        own = prompts.own
        model = self.teacher.prompter.backbone.model
        with model_lock(model), torch.no_grad():
            states = self.teacher.states(study, own, example.inputs)
            others = []
            for one in prompts.others:
                prompt = replace(own, inputs=_whole(one.changed, own.inputs))
                shows = self.examples.studies[one.index]
                others.append(self.teacher.states(shows, prompt, one.alone))
            values = divergence(output_head(model), states, others)
        if values.isnan().any():
            raise DiveError(
                f"{study.where}: the teacher's logits are not finite, so decisive='visual' finds "
                "no weights; try dtype=float32 or bfloat16 in place of float16"
            )
        self._known[example.index] = values.cpu()
        return states

    def weighed(self, example: Example) -> Example:
        """The example with the classes and weights of its tokens, once they are known: a token is
        of the class pathology where 1 - exp(-v) is 0.5 or more."""
        shares = self._shares(self.of(example.index))
        classes = [PATHOLOGY if share >= 0.5 else TEMPLATE for share in shares]
        weights = [1 + (self._pathology - 1) * share for share in shares]
        # an answer's last token is its end
        return replace(example, classes=[*classes, EOS], weights=[*weights, self._eos])

    @staticmethod
    def _shares(values: Tensor) -> list[float]:
        """1 - exp(-v) of the tokens before the end."""
        return [-math.expm1(-value) for value in values[:-1].tolist()]

    def share(self) -> float | None:
        """The share of the weight that is there because of images: sum(weight - 1) over the tokens
        before the ends / sum(weight), of the studies whose weights are known; None without any."""
        extra = tokens = ends = 0.0
        for values in self._known.values():
            shares = self._shares(values)
            extra += (self._pathology - 1) * math.fsum(shares)
            tokens += len(shares)
            ends += self._eos
        total = tokens + extra + ends
        return extra / total if total > 0 else None


class _Unreadable(DiveError):
    """The error of another study's image."""


def divergence(head: Head, states: Tensor, others: Sequence[Tensor]) -> Tensor:
    """KL(p || mean of q), float32 [T] in nats: p of the hidden states `states` [T, D], q of each of
    `others`, in float64 where the device has it."""
    vocab = head.weight.shape[0]
    rows = max(1, CHUNK_BYTES // (8 * vocab))
    found = []
    for start in range(0, len(states), rows):
        part = slice(start, start + rows)
        expected = _log_probabilities(head, states[part])
        mixture: Any = None
        for other in others:
            one = _log_probabilities(head, other[part])
            mixture = one if mixture is None else torch.logaddexp(mixture, one)
        ratio = expected - (mixture - math.log(len(others)))
        # a token that is never expected (its logit is -inf) adds nothing
        terms = torch.where(expected == -math.inf, 0.0, expected.exp() * ratio)
        found.append(terms.sum(-1).clamp(min=0).float())
    return torch.cat(found)


def _log_probabilities(head: Head, states: Tensor) -> Tensor:
    """[T, V], from logits in float32 at least: those of a half-precision head are too coarse."""
    device = head.weight.device
    states = states.to(device)
    if head.weight.dtype in (torch.float16, torch.bfloat16):
        width = head.weight.shape[1]
        step = max(1, CHUNK_BYTES // (4 * width))
        blocks = [F.linear(states.float(), block.float()) for block in head.weight.split(step)]
        logits = torch.cat(blocks, -1)
    else:
        logits = F.linear(states.to(head.weight.dtype), head.weight)
    if head.bias is not None:
        logits = logits + head.bias.to(logits.dtype)
    if device.type != "mps":  # which has no float64
        logits = logits.double()
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return logits.log_softmax(-1)


def _shuffled(items: Sequence[int], draw: random.Random) -> Iterator[int]:
    """Yield the items in a drawn order, in time that grows with how many are asked for."""
    moved: dict[int, int] = {}
    for index in range(len(items)):
        at = draw.randrange(index, len(items))
        yield items[moved.get(at, at)]
        moved[at] = moved.get(index, index)


def _changed(inputs: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor | Rows]:
    found: dict[str, Tensor | Rows] = {}
    for name, value in inputs.items():
        other = base.get(name)
        if other is None or other.shape != value.shape or other.dtype != value.dtype:
            found[name] = value
            continue
        differs = (value != other).reshape(len(value), -1).any(-1)
        index = differs.nonzero().squeeze(1)
        found[name] = Rows(index, value[index])
    return found


def _whole(changed: Mapping[str, Tensor | Rows], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in changed.items():
        if isinstance(value, Rows):
            whole = base[name]
            if len(value.index):
                whole = whole.index_copy(0, value.index, value.values)
            value = whole
        found[name] = value
    return found
