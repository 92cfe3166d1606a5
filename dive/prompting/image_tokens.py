"""Numbers of tokens of images in a prompt, from their sizes: no pixel of a study is read.

A size is measured by processing a blank image of it. Of more than `ASKED` sizes the most different
are measured, and the others are computed by the processor's own rule of sizes, if that agrees with
every measurement; without such a rule each size is measured once.
"""

import copy
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dive.data.images.load import blank_image
from dive.data.study import Study
from dive.errors import DiveError
from dive.prompting.prompter import Prompter

log = logging.getLogger(__name__)

Size = tuple[int, int]  # width and height in pixels
Rule = Callable[[Size], tuple[int, int]]

ASKED = 16  # sizes that are measured before a processor's rule is trusted


class ImageTokens:
    """Tokens by image size, for one prompter.

    Attributes:
        prompt_overhead: tokens that the processor adds once per prompt, whatever is in it (a bos,
            say).
        alone_differs: whether the only image of a prompt takes another number of tokens than one of
            several (LLaVA-OneVision tiles only then).
    """

    def __init__(self, prompter: Prompter) -> None:
        self._prompter = prompter
        self._known: dict[tuple[Size, bool], tuple[int, int] | DiveError] = {}
        self._asked: dict[tuple[Size, int], tuple[int, int]] = {}
        self.prompt_overhead = 0
        self.alone_differs = False
        self._ready = False

    def learn(self, sizes: Iterable[tuple[Size, bool]]) -> None:
        """Measure or compute these pairs (size, alone in its prompt)."""
        wanted = dict.fromkeys(sizes)
        if not self._ready:
            self._measure_overhead(list(dict.fromkeys(size for size, _ in wanted)))
            self._ready = True
        for alone in (True, False) if self.alone_differs else (True,):
            missing = [
                size
                for size, single in wanted
                if (single or not self.alone_differs) is alone and (size, alone) not in self._known
            ]
            self._learn(list(dict.fromkeys(missing)), alone)

    def taken(self, size: Size, alone: bool) -> int:
        """The tokens that an image of this size takes in addition to its placeholder.

        Raises:
            DiveError: the processor refuses images of this size.
        """
        return self._of(size, alone)[0]

    def shown(self, size: Size, alone: bool) -> int:
        """The image tokens of an image, without the special tokens around it."""
        return self._of(size, alone)[1]

    def _of(self, size: Size, alone: bool) -> tuple[int, int]:
        key = size, alone or not self.alone_differs
        if key not in self._known:
            self.learn([(size, alone)])
        found = self._known[key]
        if isinstance(found, DiveError):
            raise found
        return found

    def _measure_overhead(self, sizes: list[Size]) -> None:
        """Measure the overhead of a prompt, and whether an image alone takes other tokens."""
        if not self._prompter.sees:
            self.prompt_overhead = self._added((1, 1), 0)[0]
        known = False
        for size in _different(sizes, 5):
            try:
                one, two = (self._added(size, count)[0] for count in (1, 2))
                if not known:
                    self.prompt_overhead = two - 2 * (self._added(size, 3)[0] - two)
                    known = True
            except DiveError:
                continue  # reported for every study that has this size
            self.alone_differs |= one - self.prompt_overhead != (two - self.prompt_overhead) / 2

    def _learn(self, sizes: list[Size], alone: bool) -> None:
        chosen = sizes if len(sizes) <= ASKED else _different(sizes, ASKED)
        for size in chosen:
            self._ask(size, alone)
        others = [size for size in sizes if (size, alone) not in self._known]
        if not others:
            return
        if not self._by_rule(chosen, others, alone):
            log.info(
                "%s has no rule by which image sizes become tokens; each of %d sizes is measured",
                type(self._prompter.processor).__name__,
                len(sizes),
            )
            for size in others:
                self._ask(size, alone)

    def _ask(self, size: Size, alone: bool) -> None:
        count = 1 if alone else 2
        try:
            added, shown = self._added(size, count)
            self._known[size, alone] = (added - self.prompt_overhead) // count, shown // count
        except DiveError as error:
            self._known[size, alone] = error

    def _added(self, size: Size, count: int) -> tuple[int, int]:
        """Tokens that `count` blank images add to a prompt's text, and their image tokens."""
        if (size, count) in self._asked:
            return self._asked[size, count]
        study = Study(id="a blank image", images=(blank_image(size),) * count)
        try:
            encoded = self._prompter.encode_any_length(study)
        except DiveError as error:
            reason = str(error).removeprefix(f"{study.where}: ")
            raise DiveError(reason) from error
        length = encoded["input_ids"].shape[1] - rendered_length(self._prompter, study)
        self._asked[size, count] = length, self._prompter.count_image_tokens(encoded)
        return self._asked[size, count]

    def _by_rule(self, chosen: list[Size], others: list[Size], alone: bool) -> bool:
        """Compute `others` by a rule that agrees with `chosen`; False without one."""
        known = [(size, self._known[size, alone]) for size in chosen]
        answers = [(size, one) for size, one in known if not isinstance(one, DiveError)]
        rule = rule_of(self._prompter) if alone else _constant
        if rule is None or not answers:
            return False
        # a rule may leave out special tokens around an image: its offset is constant then
        off = set()
        for size, real in answers:
            counted = _by(rule, size)
            if counted is None:
                return False
            off.add((real[0] - counted[0], real[1] - counted[1]))
        if len(off) > 1:
            return False
        prompt_offset, image_offset = off.pop()
        for size in others:
            counted = _by(rule, size)
            if counted is None:
                self._ask(size, alone)
            else:
                self._known[size, alone] = counted[0] + prompt_offset, counted[1] + image_offset
        return True


def rendered_length(prompter: Prompter, study: Study, shown: Sequence[Study] = ()) -> int:
    """Tokens of the prompt's text, in which an image is one placeholder."""
    text = prompter.render(study, shown)
    return len(prompter.tokenizer(text, add_special_tokens=False)["input_ids"])


def rule_of(prompter: Prompter) -> Rule | None:
    """The processor's own rule: from a size to the tokens in the prompt, and the image tokens.

    Both may be off by a constant. None where it has no rule.
    """
    processor, settings = prompter.processor, prompter.image_settings
    images = processor.image_processor
    image_kwargs = settings.get("images_kwargs", {})
    merge: Any = getattr(images, "merge_size", None)
    if isinstance(merge, int) and hasattr(images, "get_number_of_image_patches"):
        # the Qwen-VL line, whose processor's rule ignores a size that is passed with the call
        size = dict(image_kwargs.get("size") or images.size)
        limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}

        def area(size: Size) -> tuple[int, int]:
            width, height = size
            patches = images.get_number_of_image_patches(height, width, limits)
            return (patches // int(merge) ** 2,) * 2

        return area
    cells = getattr(processor, "spatial_merge_size", None)
    if isinstance(cells, int):
        edge = dict(image_kwargs.get("size") or images.size).get("longest_edge")
        return None if edge is None else _pixtral(int(edge), int(processor.patch_size) * cells)
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    if count is None:
        # where tiling is switched off, an image is one tile of a fixed size
        return _constant if image_kwargs and not any(image_kwargs.values()) else None
    # of Idefics 3 and SmolVLM, without special tokens
    tile = getattr(processor, "image_seq_len", None)

    def own(size: Size) -> tuple[int, int]:
        width, height = size
        with _defaults_kept(processor):
            found = count(image_sizes=[(height, width)], **image_kwargs)
        tokens, tiles = found["num_image_tokens"][0], found["num_image_patches"][0]
        return int(tokens), int(tokens if tile is None else tile * tiles)

    return own


@contextmanager
def _defaults_kept(processor: Any) -> Iterator[None]:
    """Restore the defaults of the processor's class when the context closes.

    transformers' rules of sizes (up to 5.24 at least) write their arguments into these defaults, so
    that every later call of any such processor would use them.
    """
    # they are in classes of the same modules; dive may have derived the processor's own class
    modules = {one.__module__ for one in type(processor).__mro__} & sys.modules.keys()
    beside = [one for name in modules for one in vars(sys.modules[name]).values()]
    found = [vars(one).get("_defaults") for one in beside if isinstance(one, type)]
    stores = list({id(one): one for one in found if isinstance(one, dict)}.values())
    before = [copy.deepcopy(one) for one in stores]
    try:
        yield
    finally:
        for store, kept in zip(stores, before, strict=True):
            store.clear()
            store.update(kept)


def _pixtral(edge: int, cell: int) -> Rule:
    """The rule for an image within `edge` x `edge` pixels: a token per cell, one more per row."""

    def count(size: Size) -> tuple[int, int]:
        width, height = size
        ratio = max(width / edge, height / edge)
        if ratio > 1:
            width, height = math.floor(width / ratio), math.floor(height / ratio)
        columns, rows = ((extent - 1) // cell + 1 for extent in (width, height))
        return rows * (columns + 1), rows * columns

    return count


def _constant(_: Size) -> tuple[int, int]:
    """The rule of a fixed number per image."""
    return 0, 0


def _by(rule: Rule, size: Size) -> tuple[int, int] | None:
    try:
        return rule(size)
    except Exception as error:  # a processor's own code may raise anything
        log.info("the processor's rule of sizes refuses %d x %d: %s", *size, error)
        return None


def _different(sizes: Sequence[Size], count: int) -> list[Size]:
    """At most `count` of the sizes: the first, and the most different in area and in shape."""
    if len(sizes) <= count:
        return list(sizes)
    chosen = dict.fromkeys(sizes[:1])
    steps = max((count - 1) // 2 - 1, 1)
    orders: list[Callable[[Size], float]] = [lambda s: s[0] * s[1], lambda s: s[0] / s[1]]
    for order in orders:
        ordered = sorted(sizes, key=order)
        indices = [(len(ordered) - 1) * at // steps for at in range(steps + 1)]
        chosen |= dict.fromkeys(ordered[index] for index in indices)
    return list(chosen)[:count]
