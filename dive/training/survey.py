"""The survey of every study before the first step: texts and image headers, no pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image

from dive.data.datasets.json_lines import Skipped
from dive.data.images.load import image_size
from dive.data.study import Study
from dive.decisive.tokens import CLASS_NAMES, DecisiveTokens
from dive.errors import DiveError
from dive.errors.counting import counted
from dive.prompting.image_tokens import ImageTokens, Size, rendered_length
from dive.prompting.prompter import Prompter
from dive.training.examples import Examples, weigh
from dive.training.workers import spread

LABELLED = 4096  # reports, at most, from which the shares of the classes are estimated
_BLANK = Image.new("RGB", (1, 1))  # a placeholder in texts, which no model sees


class Look(NamedTuple):
    """The facts about a study that are known without decoding its images.

    sizes: width and height of each image, as it is shown. text: tokens of the prompt's text, with
    one per image. response: tokens of the answer. classes: how many of those are of each class;
    empty where the answer was not labelled.
    """

    sizes: tuple[Size, ...]
    text: int
    response: int
    classes: tuple[int, ...] = ()


class Ruler:
    """The lengths of prompts in tokens, from texts and image sizes."""

    def __init__(self, prompter: Prompter) -> None:
        self.prompter = prompter
        self.images = ImageTokens(prompter)
        picture = (_BLANK,) if prompter.sees else ()
        words = "No effusion."
        self._one = Study("one", picture, findings=words, impression=words)

    @cached_property
    def _turns(self) -> tuple[int, int]:
        """Tokens that a template adds around a turn between two others, and how many more it adds
        around the first turn of several."""
        prompter, one = self.prompter, self._one
        once, twice, thrice = (rendered_length(prompter, one, [one] * count) for count in range(3))
        around = (thrice - twice) - once - len(prompter.response(one).ids)
        return around, (twice - once) - (thrice - twice)

    def look(self, study: Study, weigher: DecisiveTokens | None = None) -> Look:
        """Measure the text and image headers of one study; `weigher` labels the answer's tokens.

        Raises:
            DiveError: a file is missing or no image, or the text makes no prompt or no answer.
        """
        text = rendered_length(self.prompter, study)
        sizes: tuple[Size, ...] = ()
        if self.prompter.sees:
            sizes = tuple(
                image_size(image, study.where, name=name)
                for image, name in zip(study.images, study.image_names, strict=True)
            )
        response = self.prompter.response(study)
        counts: tuple[int, ...] = ()
        if weigher is not None:
            classes, _ = weigh(weigher, study, response)
            counts = tuple(classes.count(kind) for kind in range(len(CLASS_NAMES)))
        return Look(sizes, text, len(response.ids), counts)

    def text(self, query: Look, shown: Sequence[Look] = ()) -> int:
        """Tokens of a prompt with these demonstrations before the query, without its images. The
        lengths of turns add up where a template separates turns by tokens of its own."""
        length = self.images.prompt_overhead + query.text
        if not shown:
            return length
        around, first = self._turns
        return length + first + sum(one.text + one.response + around for one in shown)

    def taken(self, looks: Sequence[Look]) -> int:
        """Tokens that the images of a prompt of these studies take beyond their placeholders.

        Raises:
            DiveError: the processor refuses images of this size.
        """
        sizes = [size for look in looks for size in look.sizes]
        alone = len(sizes) == 1
        return sum(self.images.taken(size, alone) for size in sizes)

    def shown(self, look: Look) -> int:
        """Image tokens of the study's own prompt."""
        alone = len(look.sizes) == 1
        return sum(self.images.shown(size, alone) for size in look.sizes)


@dataclass
class Survey:
    """The studies that can be used, with their lengths, token counts and classes."""

    ruler: Ruler
    studies: list[Study]
    looks: list[Look]
    image_tokens: list[int]  # per study
    images: list[int]  # per study
    prompt_lengths: list[int]
    response_lengths: list[int]
    class_counts: list[int]  # tokens per class, in the reports that were labelled

    @staticmethod
    def quantiles(lengths: Sequence[int]) -> tuple[int, int]:
        """The greatest length, and the one that 95% do not exceed."""
        return max(lengths), int(np.percentile(lengths, 95, method="higher"))


def survey(
    studies: Sequence[Study],
    prompter: Prompter,
    weigher: DecisiveTokens,
    *,
    on_error: str = "fail",
    skipped: Skipped,
    step: Callable[[], None] = lambda: None,
    purpose: str = "to learn from",
    workers: int = 0,
) -> tuple[Examples, Survey]:
    """Measure every study, so that missing images, empty reports and overlong prompts are found
    before the first step. With on_error="skip" such studies are left out and listed in `skipped`.

    No image is decoded, so damage behind its header is found later. Of many reports only a sample
    is labelled, where labelling cannot fail.

    Args:
        step: called after every study. purpose: for the message that none is left.
        workers: processes that read studies.

    Raises:
        DiveError: a study cannot be used, with on_error="fail"; or none is left.
    """
    ruler = Ruler(prompter)

    every = 1 if weigher.annotator is not None else -(-len(studies) // LABELLED)

    def look(index: int) -> Look | DiveError:
        try:
            return ruler.look(studies[index], None if index % every else weigher)
        except DiveError as error:
            return error

    found: list[tuple[Study, Look]] = []

    def bad(study: Study, error: DiveError) -> None:
        if on_error == "fail":
            raise error
        skipped.add(study.id, study.source, error)

    for study, seen in zip(studies, spread(look, range(len(studies)), workers), strict=True):
        step()
        if isinstance(seen, DiveError):
            bad(study, seen)
        else:
            found.append((study, seen))
    ruler.images.learn((size, len(seen.sizes) == 1) for _, seen in found for size in seen.sizes)
    result = Survey(ruler, [], [], [], [], [], [], [0] * len(CLASS_NAMES))
    for study, seen in found:
        try:
            length, images = ruler.text(seen) + ruler.taken([seen]), ruler.shown(seen)
            prompter.check_prompt(study, length, images, len(seen.sizes))
            prompter.check_answer(length, seen.response)
        except DiveError as error:
            bad(study, error if str(error).startswith(study.where) else _of(study, error))
            continue
        result.studies.append(study)
        result.looks.append(seen)
        result.images.append(len(seen.sizes))
        result.image_tokens.append(images)
        result.prompt_lengths.append(length)
        result.response_lengths.append(seen.response)
        for kind, count in enumerate(seen.classes):
            result.class_counts[kind] += count
    if not result.studies:
        raise DiveError(f"no study is left {purpose}: {counted(len(studies), 'study')} skipped")
    return Examples(result.studies, prompter, weigher), result


def _of(study: Study, error: DiveError) -> DiveError:
    return DiveError(f"{study.where}: {error}")
