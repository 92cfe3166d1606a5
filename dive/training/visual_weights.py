"""Visual weights: how much the image changes what the teacher expects at each token of a report.

v_t = KL(p(. | image, prefix) || mean over other patients' images of p(. | other image, prefix)), in
nats and over the whole vocabulary, where p is the k-shot prompted backbone and only the query's
images are replaced. A token weighs 1 + (pathology_weight - 1) * (1 - exp(-v_t)), and 1 - exp(-KL)
bounds the squared total variation distance (Bretagnolle and Huber). v_t is a function of image and
prefix and not of the token that is written, so the weight moves no threshold between the tokens
that might be. The measure is VA-OPD's (arXiv 2605.21924).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from dive.backbone.model_lock import model_lock
from dive.backbone.structure import Head, output_head
from dive.data.datasets.json_lines import Skipped
from dive.data.study import Study
from dive.decisive.tokens import EOS, PATHOLOGY, TEMPLATE, DecisiveTokens, Mention
from dive.errors import DiveError
from dive.files.atomic import write_bytes
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.prompter import Prompter
from dive.training.examples import Example, in_memory
from dive.training.other_images import OTHERS, OtherImages, VisualPrompts
from dive.training.survey import survey
from dive.training.teacher import Teacher

SOURCE = f"how much the image changes what the teacher expects (images of {OTHERS} other patients)"
# what a training's weights depend on besides its settings and studies; to be changed with the draw
IDENTITY = ["visual", {"others": OTHERS, "draw": 1}]
VISUAL_FILE = "visual_weights.safetensors"
CHUNK_BYTES = 64 << 20  # of one buffer of log-probabilities
BUFFERS = 5  # that are held at a time


class EndAlone(DecisiveTokens):
    """Classes by which no token but the end is decisive, without a look at a lexicon."""

    def mentions(self, text: str) -> list[Mention]:
        return []


class VisualWeights:
    """The visual weights of the training studies, each computed when it is needed first, and kept.

    With redrawn demonstrations they are those under the demonstrations of the first epoch: so they
    are a function of the study alone, and four of five prompts are run once and not in every epoch.

    To be made before an adapter is attached.
    """

    def __init__(self, images: OtherImages, pathology: float, eos: float) -> None:
        self.images = images
        self._head = output_head(images.teacher.prompter.backbone)
        self._pathology, self._eos = pathology, eos
        self._known: dict[int, Tensor] = {}  # float32 [T] on the CPU, by study
        self._new: list[int] = []  # studies whose weights no other rank knows

    def knows(self, index: int) -> bool:
        """Whether the weights of a study are known, so that no prompt is needed for them."""
        return index in self._known

    def of(self, index: int) -> Tensor:
        """v, float32 [T] in nats, of a study whose weights are known."""
        return self._known[index]

    def compute(self, example: Example, prompts: VisualPrompts) -> Tensor:
        """Compute the weights of a study, and return the teacher's hidden states [T, D] of its own
        prompt, which serve the loss, too.

        Raises:
            DiveError: the teacher's logits are not finite.
        """
        teacher = self.images.teacher
        with model_lock(teacher.prompter.backbone), torch.no_grad():
            states, others = self.images.states(example, prompts)
            values = divergence(self._head, states, others)
        if values.isnan().any():
            where = teacher.examples.studies[example.index].where
            raise DiveError(
                f"{where}: the teacher's logits are not finite, so decisive='visual' finds no "
                "weights; try dtype=float32 or bfloat16 in place of float16"
            )
        self._known[example.index] = values.cpu()
        self._new.append(example.index)
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
        each = [self._shares(values) for values in self._known.values()]
        # fsum: whatever the order in which they became known
        extra = (self._pathology - 1) * math.fsum(share for shares in each for share in shares)
        total = sum(map(len, each)) + extra + self._eos * len(each)
        return extra / total if total > 0 else None

    # What is known is kept with checkpoints, so that a resumed training runs no prompt of a study
    # again for its weights, and weighs its tokens as it did, on every device.

    def take_new(self) -> list[tuple[int, bytes]]:
        """The weights that were computed here since the last call, as (study, float32 values)."""
        new = [(index, self._known[index].numpy().tobytes()) for index in self._new]
        self._new = []
        return new

    def add(self, entries: Iterable[tuple[int, bytes]]) -> None:
        """Learn weights that another rank has computed."""
        for index, values in entries:
            self._known.setdefault(index, torch.frombuffer(bytearray(values), dtype=torch.float32))

    def save(self, folder: Path) -> None:
        """Write the weights that are known into a checkpoint."""
        order = sorted(self._known)
        each = [self._known[index] for index in order]
        tensors = {
            "studies": torch.tensor(order, dtype=torch.int64),
            "lengths": torch.tensor([len(one) for one in each], dtype=torch.int64),
            "values": torch.cat([torch.zeros(0), *each]),
        }
        write_bytes(folder / VISUAL_FILE, save(tensors))

    def load(self, folder: Path) -> None:
        """Read the weights from a checkpoint.

        Raises:
            DiveError: the file cannot be read.
        """
        path = folder / VISUAL_FILE
        try:
            found = load_file(path)
            each = found["values"].split(found["lengths"].tolist())
            self._known |= dict(zip(found["studies"].tolist(), each, strict=True))
        except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as error:
            raise DiveError(f"{path} cannot be read: {error}") from error


def divergence(head: Head, states: Tensor, others: Sequence[Tensor]) -> Tensor:
    """KL(p || mean of q), float32 [T] in nats: p of the hidden states `states` [T, D], q of each of
    `others`, in float64 where the device has it."""
    vocab = head.weight.shape[0]
    chunk = max(1, CHUNK_BYTES // (8 * vocab))
    found = []
    for start in range(0, len(states), chunk):
        part = slice(start, start + chunk)
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


def visual_values(
    prompter: Prompter, studies: Sequence[Study], demonstrations: Demonstrations, seed: int = 0
) -> list[Tensor]:
    """v of every study, float32 [T] in nats with one value per token of the report and its end, as
    a training with these demonstrations and this seed finds it.

    Raises:
        DiveError: a study or an image cannot be used.
    """
    weigher = EndAlone(prompter.backbone.tokenizer)
    examples, _ = survey(studies, prompter, weigher, skipped=Skipped())
    images = OtherImages(Teacher(prompter, examples, demonstrations), seed)
    images.check()
    weights = VisualWeights(images, pathology=1.0, eos=1.0)
    for index, study in enumerate(examples.studies):
        bad: dict[int, str] = {}
        weights.compute(
            examples[index], images.prompts(examples[index], in_memory(study), bad, bad)
        )
        for reason in bad.values():
            raise DiveError(reason)
    return [weights.of(index) for index in range(len(examples))]
