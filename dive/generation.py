"""`dive.generate`: reports from images or studies, with an adapter, demonstrations, or neither."""

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from dive.adapter import SteeringAdapter
from dive.attach import steer
from dive.backbone import Backbone
from dive.data.jsonl import Skipped, check_on_error
from dive.data.study import Study
from dive.errors import DiveError
from dive.prompting import DEFAULT_MAX_IMAGE_TOKENS, Prompter

log = logging.getLogger(__name__)

ImageLike = str | Path | Image.Image
Item = Study | ImageLike | Sequence[ImageLike]

# Greedy search, whatever the model's generation_config proposes for chatting. Given as values and
# not left out, because transformers fills what is left out from the model's file.
_GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


@dataclass
class Report:
    """One generated report.

    Attributes:
        text: the report, without special tokens and outer white space.
        token_ids: what was generated, with the token that ended it, if one did.
        finish_reason: "eos" if the model ended the report, "length" if `max_new_tokens` did.
        num_tokens: len(token_ids).
        seconds: wall time of its batch (prompt and images included) divided by the batch's size.
        id: of the study; for a bare image its path as given.
        images: paths as given; PIL images are named by their place.
        prompt_tokens: length of the prompt, images and demonstrations included.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    num_tokens: int
    seconds: float
    id: str
    images: list[str]
    prompt_tokens: int


def generate(
    backbone: Backbone | PreTrainedModel,
    images_or_studies: Item | Iterable[Item],
    prompt: str | None = None,
    adapter: SteeringAdapter | None = None,
    demonstrations: Sequence[Study] | None = None,
    *,
    max_new_tokens: int = 256,
    batch_size: int = 8,
    target: str | None = None,
    max_image_tokens: int | str | None = "auto",
    template: str | Path | None = None,
    processor: Any = None,
    streamer: Any = None,
    progress: bool | None = None,
    on_error: str = "fail",
    skipped: Skipped | None = None,
    **generate_kwargs: Any,
) -> list[Report]:
    """Write one report for each image or study, in the order given.

    Args:
        backbone: from `load_backbone`, or a bare model together with `processor`.
        images_or_studies: a path, PIL image or `Study`, or many of them. A sequence of images
            inside the sequence is one study of several images: `[[frontal, lateral]]`.
        prompt: what the model is asked. Default: the prompt that the adapter was trained with,
            else `prompting.DEFAULT_PROMPTS[target]`. Another prompt than the adapter's warns.
        adapter: attached while the model runs and gone afterwards.
        demonstrations: studies with reports, shown before the query (k-shot prompting). One that
            has the query's id or patient is left out for that query, with a line of log.
        max_new_tokens: longest report. Cut down, with a warning, to what the context has left.
        batch_size: studies that run at once, padded on the left.
        target: "findings", "impression" or "both"; chooses the default prompt and the
            demonstrations' text. Default: the adapter's, else "findings".
        max_image_tokens: budget an image (see `Prompter`); "auto" is the adapter's, else 576.
        template: a chat template in place of the model's; default: the adapter's, if it has one.
        streamer: as in transformers; for a single image or study.
        progress: a progress bar on stderr; None shows one for more than one batch on a terminal.
        on_error: "fail" raises at the first study that cannot be prompted; "skip" goes on and
            records it in `skipped`: fewer reports than studies come back.
        generate_kwargs: go to `model.generate` as they are. Without them decoding is greedy: the
            sampling, beams and penalties of the model's generation_config are not used.

    Raises:
        DiveError: unreadable image, overlong prompt, no studies, an adapter of another backbone.
    """
    return list(
        iter_reports(
            backbone,
            images_or_studies,
            prompt,
            adapter,
            demonstrations,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            target=target,
            max_image_tokens=max_image_tokens,
            template=template,
            processor=processor,
            streamer=streamer,
            progress=progress,
            on_error=on_error,
            skipped=skipped,
            **generate_kwargs,
        )
    )


def iter_reports(
    backbone: Backbone | PreTrainedModel,
    images_or_studies: Item | Iterable[Item],
    prompt: str | None = None,
    adapter: SteeringAdapter | None = None,
    demonstrations: Sequence[Study] | None = None,
    *,
    max_new_tokens: int = 256,
    batch_size: int = 8,
    target: str | None = None,
    max_image_tokens: int | str | None = "auto",
    template: str | Path | None = None,
    processor: Any = None,
    streamer: Any = None,
    progress: bool | None = None,
    on_error: str = "fail",
    skipped: Skipped | None = None,
    **generate_kwargs: Any,
) -> Iterator[Report]:
    """`generate`, one report at a time, as its batch is done. What is wrong is raised at once.

    The adapter is attached batch by batch: between two reports the model is as it was.
    """
    backbone = _as_backbone(backbone, processor)
    skipped = check_on_error(on_error, skipped)
    studies = as_studies(images_or_studies)
    if not studies:
        raise DiveError("there is no image or study to write a report for")
    if batch_size < 1 or max_new_tokens < 1:
        raise DiveError(
            f"batch_size {batch_size} and max_new_tokens {max_new_tokens}: both want 1 or more"
        )
    if streamer is not None and len(studies) > 1:
        raise DiveError(f"a streamer takes one study at a time, got {len(studies)}")
    if generate_kwargs.get("num_return_sequences", 1) != 1:
        raise DiveError("num_return_sequences: one study has one report")
    prompter = prompter_for(
        backbone,
        adapter,
        prompt=prompt,
        target=target,
        max_image_tokens=max_image_tokens,
        template=template,
    )
    if adapter is not None:
        adapter.check_backbone(backbone.model)
    # Shown again with every query: decode their images once.
    shown = [replace(one, images=tuple(one.load_images())) for one in demonstrations or ()]
    for one in shown:
        one.report(prompter.target)
    run = _Run(backbone, prompter, adapter, shown, max_new_tokens, streamer, generate_kwargs)
    return _batches(run, studies, batch_size, progress, on_error, skipped)


def prompter_for(
    backbone: Backbone,
    adapter: SteeringAdapter | None = None,
    *,
    prompt: str | None = None,
    target: str | None = None,
    max_image_tokens: int | str | None = "auto",
    template: str | Path | None = None,
) -> Prompter:
    """A prompter as the adapter was trained with; what is given instead of it warns."""
    stored = {} if adapter is None else adapter.metadata
    asked = {"prompt": prompt, "target": target, "template": template}
    settings = {name: stored.get(name) if value is None else value for name, value in asked.items()}
    if prompt is None and target not in (None, stored.get("target", target)):
        # the stored prompt asks for another section than the one that is wanted
        settings["prompt"] = None
    if max_image_tokens == "auto":
        max_image_tokens = stored.get("max_image_tokens", DEFAULT_MAX_IMAGE_TOKENS)
    prompter = Prompter(
        backbone,
        prompt=settings["prompt"],
        target=settings["target"] or "findings",
        max_image_tokens=max_image_tokens,
        template=settings["template"],
    )
    for name in ("prompt", "target", "max_image_tokens", "template_hash"):
        used = getattr(prompter, name)
        if name in stored and stored[name] != used:
            warnings.warn(
                f"the adapter was trained with {name} {stored[name]!r}, and {used!r} is used: "
                "it may do nothing or harm",
                stacklevel=4,
            )
    return prompter


def as_studies(items: Item | Iterable[Item]) -> list[Study]:
    """Whatever `generate` takes, as studies; image files are not opened."""
    if isinstance(items, (Study, str, Path, Image.Image)):
        items = [items]
    return [_as_study(item, number) for number, item in enumerate(items)]


def _as_study(item: Item, number: int) -> Study:
    if isinstance(item, Study):
        return item
    images = [item] if isinstance(item, (str, Path, Image.Image)) else list(item)
    for image in images:
        if not isinstance(image, (str, Path, Image.Image)):
            raise DiveError(
                f"item {number} is a {type(image).__name__}; wants a path, a PIL image, a Study, "
                "or a sequence of images of one study"
            )
    if not images:
        raise DiveError(f"item {number} is an empty sequence; wants one image or more")
    name = f"image-{number}" if isinstance(images[0], Image.Image) else str(images[0])
    kept = tuple(Path(image) if isinstance(image, str) else image for image in images)
    return Study(id=name, images=kept)


def _as_backbone(backbone: Backbone | PreTrainedModel, processor: Any) -> Backbone:
    if isinstance(backbone, Backbone):
        return backbone if processor is None else replace(backbone, processor=processor)
    if processor is None:
        raise DiveError(
            f"got a bare {type(backbone).__name__}; wants a Backbone from dive.load_backbone, "
            "or processor= too"
        )
    return Backbone(backbone, processor)


@dataclass
class _Run:
    """What stays the same from batch to batch."""

    backbone: Backbone
    prompter: Prompter
    adapter: SteeringAdapter | None
    demonstrations: list[Study]
    max_new_tokens: int
    streamer: Any
    generate_kwargs: dict[str, Any]

    def encode(self, study: Study) -> dict[str, Tensor]:
        shown = []
        for one in self.demonstrations:
            same = [
                name
                for name in ("id", "patient")
                if getattr(one, name) is not None and getattr(one, name) == getattr(study, name)
            ]
            if same:
                log.warning(
                    "%s: demonstration %r has the same %s and is left out",
                    study.where,
                    one.id,
                    same[0],
                )
            else:
                shown.append(one)
        return self.prompter.encode(study, shown)

    def config(self, longest: int) -> GenerationConfig:
        """The decoding that was asked for, over greedy defaults."""
        kwargs = self.generate_kwargs
        given = kwargs.get("generation_config")
        config = copy.deepcopy(given) if given is not None else GenerationConfig(**_GREEDY)
        new_tokens = self.max_new_tokens
        context = self.prompter.max_length
        if context is not None and longest + new_tokens > context:
            new_tokens = context - longest
            warnings.warn(
                f"a prompt of {longest} tokens leaves {new_tokens} of the model's context of "
                f"{context} for the report; max_new_tokens was {self.max_new_tokens}",
                stacklevel=2,
            )
        config.max_new_tokens = new_tokens
        config.max_length = None
        config.eos_token_id = self.prompter.eos_token_ids
        config.pad_token_id = self.prompter.pad_token_id
        known = {name: value for name, value in kwargs.items() if hasattr(config, name)}
        if known.get("do_sample"):
            # sampling without values of one's own is the model's proposal
            own = self.backbone.model.generation_config
            for name in ("temperature", "top_k", "top_p", "min_p", "typical_p"):
                setattr(config, name, getattr(own, name, None))
        config.update(**known)
        return config

    def reports(self, studies: list[Study], prompts: list[dict[str, Tensor]]) -> list[Report]:
        start = time.perf_counter()
        prompter, model = self.prompter, self.backbone.model
        batch = prompter.place(prompter.collate(prompts, side="left"))
        config = self.config(batch["input_ids"].shape[1])
        others = {
            name: value
            for name, value in self.generate_kwargs.items()
            if name != "generation_config" and not hasattr(config, name)
        }
        arguments = {**batch, **others, "generation_config": config, "streamer": self.streamer}
        if self.adapter is None:
            output = model.generate(**arguments)
        else:
            with steer(self.backbone, self.adapter):
                output = model.generate(**arguments)
        sequences = output if isinstance(output, Tensor) else output.sequences
        answers = sequences[:, batch["input_ids"].shape[1] :].tolist()
        each = (time.perf_counter() - start) / len(studies)
        return [
            self._report(study, prompt["input_ids"].shape[1], answer, each, config)
            for study, prompt, answer in zip(studies, prompts, answers, strict=True)
        ]

    def _report(
        self,
        study: Study,
        prompt_tokens: int,
        ids: list[int],
        seconds: float,
        config: GenerationConfig,
    ) -> Report:
        eos = config.eos_token_id
        ends = set(eos if isinstance(eos, list) else [eos])
        stop = next((place for place, index in enumerate(ids) if index in ends), None)
        if stop is not None:
            ids = ids[: stop + 1]
        else:
            # shorter than the batch without an end token: a stopping criterion of the caller's
            while ids and ids[-1] == config.pad_token_id:
                ids.pop()
        text = self.prompter.tokenizer.decode(
            ids if stop is None else ids[:-1], skip_special_tokens=True
        )
        return Report(
            text=text.strip(),
            token_ids=ids,
            finish_reason="length" if stop is None else "eos",
            num_tokens=len(ids),
            seconds=seconds,
            id=study.id,
            images=[
                f"image {place}" if isinstance(image, Image.Image) else str(image)
                for place, image in enumerate(study.images)
            ],
            prompt_tokens=prompt_tokens,
        )


def _batches(
    run: _Run,
    studies: list[Study],
    batch_size: int,
    progress: bool | None,
    on_error: str,
    skipped: Skipped,
) -> Iterator[Report]:
    """Batches in order; the images of the next one are decoded while the model runs."""
    chunks = [studies[at : at + batch_size] for at in range(0, len(studies), batch_size)]
    with ThreadPoolExecutor(max_workers=1) as pool, _bar(len(studies), batch_size, progress) as bar:
        ahead: list[Future] = [pool.submit(_load, study) for study in chunks[0]]
        for number, chunk in enumerate(chunks):
            loading = ahead
            following = chunks[number + 1] if number + 1 < len(chunks) else []
            ahead = [pool.submit(_load, study) for study in following]
            kept, prompts = [], []
            for study, future in zip(chunk, loading, strict=True):
                try:
                    prompts.append(run.encode(future.result()))
                    kept.append(study)
                except DiveError as error:
                    if on_error == "fail":
                        for waiting in ahead:
                            waiting.cancel()
                        raise
                    skipped.add(study.id, study.source, error)
            if kept:
                yield from run.reports(kept, prompts)
            bar(len(chunk))


@contextmanager
def _bar(total: int, batch_size: int, progress: bool | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, or nothing; yields the function that moves it on."""
    console = Console(stderr=True)
    if progress is None:
        progress = total > batch_size and console.is_terminal
    if not progress:
        yield lambda count: None
        return
    columns = (TextColumn("reports"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reports", total=total)
        yield lambda count: bar.advance(task, count)


def _load(study: Study) -> Study:
    return replace(study, images=tuple(study.load_images()))
