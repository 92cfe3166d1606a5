"""From studies to reports, batch by batch: what `dive.generate` runs on checked input."""

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import GenerationConfig

from dive.adapter import SteeringAdapter
from dive.attach import steer
from dive.backbone import Backbone
from dive.data.jsonl import Skipped
from dive.data.study import Study
from dive.decode import DecodeSession
from dive.errors import DiveError
from dive.prompting import Prompter

log = logging.getLogger(__name__)

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
        finish_reason: "eos" if the model ended the report, else "length".
        num_tokens: len(token_ids).
        seconds: wall time of the model on its batch, from prompt to last token, divided by the
            batch's size.
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


@dataclass
class Run:
    """What stays the same from batch to batch."""

    backbone: Backbone
    prompter: Prompter
    adapter: SteeringAdapter | None
    demonstrations: list[Study]
    max_new_tokens: int
    streamer: Any
    generate_kwargs: dict[str, Any]
    session: DecodeSession | None = None  # decodes in the place of transformers, where it can

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
        generate: Any = model.generate if self.session is None else self.session.generate
        batch = prompter.place(prompter.collate(prompts, side="left"))
        config = self.config(batch["input_ids"].shape[1])
        others = {
            name: value
            for name, value in self.generate_kwargs.items()
            if name != "generation_config" and not hasattr(config, name)
        }
        arguments = {**batch, **others, "generation_config": config, "streamer": self.streamer}
        output = generate(**arguments)
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
        eos: Any = config.eos_token_id
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


def run_batches(
    run: Run,
    studies: list[Study],
    batch_size: int,
    progress: bool | None,
    on_error: str,
    skipped: Skipped,
) -> Iterator[Report]:
    """Batches in order; the images of the next one are decoded while the model runs."""
    chunks = [studies[at : at + batch_size] for at in range(0, len(studies), batch_size)]
    with (
        ThreadPoolExecutor(max_workers=1) as pool,
        _bar(len(studies), batch_size, progress) as bar,
        _steered(run) as steered,
    ):
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
                with steered():
                    reports = run.reports(kept, prompts)
                yield from reports
            bar(len(chunk))


@contextmanager
def _steered(run: Run) -> Iterator[Callable]:
    """Attaches the adapter once, as attaching throws away compiled code; yields a context in which
    it works. Between two batches the caller's own forwards pass unchanged."""
    if run.adapter is None:
        yield nullcontext
        return
    with steer(run.backbone, run.adapter) as attachment:
        attachment.enabled = False

        @contextmanager
        def steered() -> Iterator[None]:
            attachment.enabled = True
            try:
                yield
            finally:
                attachment.enabled = False

        yield steered


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
