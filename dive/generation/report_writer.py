"""From studies to reports, in slots or batch by batch: what `dive.generate` runs on checked input.

Where the engine decodes, a waiting study takes the row of a report that has ended (`run_slots`).
Where transformers does, batches wait for their longest report (`run_batches`).
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import count, groupby, islice
from typing import Any

from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from dive.adapter.attach import unsteered
from dive.backbone.load import Backbone
from dive.backbone.model_lock import model_lock
from dive.backbone.structure import unwrap
from dive.console import PlainConsole, column
from dive.data.datasets.json_lines import Skipped
from dive.decode.continuous import Request
from dive.decode.sampling import seed_of_this_call, seeded
from dive.decode.session import DecodeSession
from dive.decode.steered import attached_for, steered
from dive.decode.transformers_errors import refusals
from dive.decode.usable_logits import generate_watched
from dive.errors import DiveError
from dive.generation.nonfinite_origin import ended_early, where_it_began
from dive.generation.prefetch import Job, Prompts
from dive.generation.settings import arguments_of, config_of
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.prompter import Prompter


@dataclass
class Report:
    """One generated report.

    Attributes:
        text: the report, without special tokens and outer white space.
        token_ids: what was generated, with the token that ended it, if one did.
        finish_reason: "eos" if the model ended the report, "length" if max_new_tokens or a stopping
            criterion did, "error" where the logits for its next token were not finite: it ends
            there, and no other report notices.
        num_tokens: len(token_ids).
        seconds: wall time of the model on this report: of reading its prompt, and its share of
            the steps that it took part in. In transformers its share of its batch's time.
        id: of the study; for a bare image its path as given.
        images: paths as given; PIL images are named by their place.
        prompt_tokens: length of the prompt, images and demonstrations included.
        engine: what decoded it, "dive._C" or "transformers".
        error: with finish_reason "error", what happened and where in the model it began; else None.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    num_tokens: int
    seconds: float
    id: str
    images: list[str]
    prompt_tokens: int
    engine: str
    error: str | None = None


@dataclass
class Run:
    """What stays the same from study to study.

    seed: of sampling; report i is drawn with `seed + i`. None: drawn from torch's generator.
    told: whether a report was warned of that ended in an error.
    """

    backbone: Backbone
    demonstrations: Demonstrations | None
    max_new_tokens: int
    streamer: Any
    generate_kwargs: dict[str, Any]
    session: DecodeSession | None = None  # decodes in the place of transformers, where it can
    seed: int | None = None
    told: bool = False

    def config(self, prompter: Prompter, longest: int = 0) -> GenerationConfig:
        """The decoding that was asked for, after the longest prompt."""
        ends, padding = prompter.eos_token_ids, prompter.pad_token_id
        config = config_of(self.backbone.model, self.generate_kwargs, ends, padding)
        config.max_new_tokens = self._new_tokens(prompter, longest)
        if config.min_new_tokens is not None:  # no end before the longest is none before more
            config.min_new_tokens = min(config.min_new_tokens, config.max_new_tokens)
        return config

    def _new_tokens(self, prompter: Prompter, longest: int) -> int:
        context = prompter.max_length
        if context is None or longest + self.max_new_tokens <= context:
            return self.max_new_tokens
        if longest == 0:  # there is no prompt yet
            return context
        warnings.warn(
            f"a prompt of {longest} tokens leaves {context - longest} of the model's context of "
            f"{context} for the report; max_new_tokens was {self.max_new_tokens}",
            stacklevel=2,
        )
        return context - longest

    def others(self) -> dict[str, Any]:
        """Arguments of `model.generate` that are no setting of its config."""
        return arguments_of(self.generate_kwargs, self.backbone.tokenizer)

    def mode(self, prompter: Prompter) -> GenerationMode:
        assistant = self.generate_kwargs.get("assistant_model")
        with refusals(self.generate_kwargs):
            return self.config(prompter).get_generation_mode(assistant)

    def seeds(self, prompter: Prompter, count: int) -> list[int] | None:
        """One a study where tokens are drawn one by one; else None."""
        if self.mode(prompter) != GenerationMode.SAMPLE or "custom_generate" in self.others():
            return None
        base = seed_of_this_call() if self.seed is None else self.seed
        return list(range(base, base + count))

    def reports(
        self, jobs: Sequence[Job], prompts: list[dict[str, Tensor]], seeds: list[int] | None
    ) -> list[Report]:
        """A batch in transformers."""
        start = time.perf_counter()
        prompter = jobs[0].prompter
        model: Any = self.backbone.model
        batch = prompter.to_device(prompter.collate(prompts, side="left"))
        config = self.config(prompter, batch["input_ids"].shape[1])
        others = self.others()
        if seeds is not None:
            own = [seeds[job.number] for job in jobs]
            in_step = bool(others.pop("synced_gpus", False))
            others["custom_generate"] = seeded(own, self.streamer, in_step)
        others |= {"generation_config": config, "streamer": self.streamer}
        with refusals(others):
            output, watch = generate_watched(model, {**batch, **others}, config)
        sequences = output if isinstance(output, Tensor) else output.sequences
        each = (time.perf_counter() - start) / len(jobs)
        reports = []
        lengths = watch.lengths(len(jobs))
        for job, prompt, ids, length in zip(jobs, prompts, sequences, lengths, strict=True):
            answer = ids[batch["input_ids"].shape[1] : length].tolist()
            error = None if length is None else self.trouble(job, prompt, answer)
            read = prompt["input_ids"].shape[1]
            reports.append(self.report(job, read, answer, each, config, "transformers", error))
        return reports

    def trouble(self, job: Job, prompt: Mapping[str, Tensor], answer: list[int]) -> str:
        """What to say where the logits behind so much of an answer said nothing."""
        model, began = unwrap(self.backbone), None
        # what is attached, if anything, steered the report only where it has no adapter of its own
        bare: Any = nullcontext() if job.adapter is None else unsteered(model)
        with suppress(DiveError), model_lock(model), bare, steered(model, job.adapter):
            began = where_it_began(model, job.prompter.to_device(dict(prompt)), answer)
        error = ended_early(len(answer), began)
        if not self.told:
            self.told = True
            warnings.warn(
                f'{job.study.id}: {error}; the report ends there (finish_reason "error"; further '
                "ones of this call are not warned of)",
                stacklevel=2,
            )
        return error

    def report(
        self,
        job: Job,
        prompt_tokens: int,
        ids: list[int],
        seconds: float,
        config: GenerationConfig,
        engine: str,
        error: str | None = None,
    ) -> Report:
        """`ids` may have padding behind them, but for those of an error."""
        study = job.study
        eos: Any = config.eos_token_id
        ends = set(eos if isinstance(eos, list) else [eos])
        stop = next((place for place, index in enumerate(ids) if index in ends), None)
        if stop is not None:
            ids = ids[: stop + 1]
        elif error is None:
            # shorter than the batch without an end token: a stopping criterion of the caller's
            while ids and ids[-1] == config.pad_token_id:
                ids.pop()
        text = job.prompter.tokenizer.decode(
            ids if stop is None else ids[:-1], skip_special_tokens=True
        )
        return Report(
            text=text.strip(),
            token_ids=ids,
            finish_reason="error" if error else "length" if stop is None else "eos",
            num_tokens=len(ids),
            seconds=seconds,
            id=study.id,
            images=[
                f"image {place}" if isinstance(image, Image.Image) else str(image)
                for place, image in enumerate(study.images)
            ],
            prompt_tokens=prompt_tokens,
            engine=engine,
            error=error,
        )


def write(
    run: Run,
    jobs: list[Job],
    batch_size: int,
    progress: bool | None,
    on_error: str,
    skipped: Skipped,
) -> Iterator[Report]:
    """Reports in order, by the engine where it can."""
    with (
        ThreadPoolExecutor(max_workers=1) as pool,
        _bar(len(jobs), batch_size, progress) as bar,
    ):
        prompts = Prompts(jobs, run.demonstrations, pool, batch_size, on_error, skipped, bar)
        if run.session is not None:
            config = run.config(jobs[0].prompter)
            plan = run.session.plan(generation_config=config, **run.others())
            if plan.engine == "dive._C":
                yield from run_slots(run, prompts, batch_size)
                return
            run.session.fallback.note(plan)
        yield from run_batches(run, prompts, batch_size)


def run_slots(run: Run, prompts: Prompts, rows: int) -> Iterator[Report]:
    """Every report on its own, `rows` at once, handed out in the order of the studies."""
    assert run.session is not None
    seeds = run.seeds(prompts.jobs[0].prompter, len(prompts.jobs))
    others = run.others()
    asked: dict[int, tuple[Job, dict[str, Tensor], GenerationConfig]] = {}  # and not yet answered
    places = count()

    def requests() -> Iterator[Request]:
        before: dict[str, Tensor] | None = None
        inputs: dict[str, Tensor] = {}
        for job, prompt in prompts:
            if prompt is not before:
                before, inputs = prompt, job.prompter.to_device(prompt)
            length = prompt["input_ids"].shape[1]
            config = run.config(job.prompter, length)
            asked[next(places)] = (job, prompt, config)
            settings = {**others, "generation_config": config}
            seed = None if seeds is None else seeds[job.number]
            yield Request(inputs, settings, job.adapter, seed, run.streamer)

    done: dict[int, Report] = {}
    following = 0
    for written in run.session.stream(requests(), rows):
        job, prompt, config = asked.pop(written.place)
        ids, length = written.token_ids, prompt["input_ids"].shape[1]
        error = run.trouble(job, prompt, ids) if written.error else None
        done[written.place] = run.report(
            job, length, ids, written.seconds, config, written.engine, error
        )
        prompts.bar(1)
        while following in done:
            yield done.pop(following)
            following += 1
    if prompts.error is not None:
        raise prompts.error


def run_batches(run: Run, prompts: Prompts, batch_size: int) -> Iterator[Report]:
    """Batches in order."""
    seeds = run.seeds(prompts.jobs[0].prompter, len(prompts.jobs))
    model = unwrap(run.backbone)
    with attached_for(model, [job.adapter for job in prompts.jobs]) as attached:
        for chunk in _chunks(prompts, batch_size):
            jobs = [job for job, _ in chunk]
            adapters = None if attached is None else [job.adapter for job in jobs]
            with model_lock(model), steered(model, adapters, attached):
                reports = run.reports(jobs, [prompt for _, prompt in chunk], seeds)
            yield from reports
            prompts.bar(len(chunk))
    if prompts.error is not None:
        raise prompts.error


def _chunks(prompts: Prompts, size: int) -> Iterator[list[tuple[Job, dict[str, Tensor]]]]:
    """Prompts that end at the same tokens, `size` at once."""
    for _, alike in groupby(prompts, key=lambda one: one[0].prompter.eos_token_ids):
        while chunk := list(islice(alike, size)):
            yield chunk


@contextmanager
def _bar(total: int, batch_size: int, progress: bool | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, or nothing; yields the function that moves it on."""
    console = PlainConsole(stderr=True)
    if progress is None:
        progress = total > batch_size and console.is_terminal
    if not progress:
        yield lambda count: None
        return
    columns = (column("reports"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reports", total=total)
        yield lambda count: bar.advance(task, count)
