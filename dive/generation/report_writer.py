"""From studies to reports, in slots or batch by batch, on the checked input of `dive.generate`.

Where the engine decodes, a waiting study takes the slot of a report that has ended
(`write_in_slots`). Where transformers does, batches wait for their longest report
(`write_in_batches`).
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import count, groupby, islice
from typing import Any

from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from dive.adapter.adapter import SteeringAdapter
from dive.adapter.attach import unsteered
from dive.backbone.load import Backbone
from dive.backbone.model_lock import model_lock
from dive.backbone.structure import unwrap
from dive.data.datasets.json_lines import Skipped
from dive.decode.continuous import Request
from dive.decode.sampling import seed_of_this_call, seeded
from dive.decode.session import DecodeSession
from dive.decode.steered import attached_for, steered
from dive.decode.transformers_errors import refusals
from dive.decode.usable_logits import generate_watched
from dive.errors import DiveError
from dive.errors.console import PlainConsole, column
from dive.generation.nonfinite_origin import early_end, nonfinite_origin
from dive.generation.prefetch import Job, Prompts
from dive.generation.settings import arguments_of, config_of
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.prompter import Prompter


@dataclass
class Report:
    """One generated report.

    Attributes:
        text: the report, without special tokens and surrounding white space.
        token_ids: the generated tokens, with the token that ended it, if one did.
        finish_reason: "eos" if the model ended the report, "length" if max_new_tokens or a stopping
            criterion did, "error" where the logits for its next token were unusable: it ends there,
            and no other report is affected.
        num_tokens: len(token_ids).
        seconds: wall time of the model on this report: of its prefill, and its share of the decode
            steps that it took part in. In transformers its share of its batch's time.
        id: of the study; for a bare image its path as given.
        images: paths as given; PIL images are named by their index.
        prompt_tokens: length of the prompt, images and demonstrations included.
        engine: which one decoded it, "dive._C", "transformers" or "vllm".
        error: with finish_reason "error", what happened and where in the model it began; else None.
        adapter: the name of the adapter that steered it (of its folder, else "adapter"), or None.
        adapter_sha256: of that adapter's weights, as in its adapter_config.json.
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
    adapter: str | None = None
    adapter_sha256: str | None = None


@dataclass
class ReportWriter:
    """The settings of one call of `dive.generate`, and the steps from a prompt to its `Report`.

    seed: of sampling; report i is drawn with `seed + i`. None: drawn from torch's generator.
    warned: whether a report that ended in an error has been warned of.
    """

    backbone: Backbone
    demonstrations: Demonstrations | None
    max_new_tokens: int
    streamer: Any
    generate_kwargs: dict[str, Any]
    session: DecodeSession | None = None  # decodes instead of transformers, where it can
    seed: int | None = None
    warned: bool = False
    _digests: dict[int, str] = field(default_factory=dict)  # of adapters, by id

    def config(self, prompter: Prompter, longest: int = 0) -> GenerationConfig:
        """The requested decoding, for prompts of up to `longest` tokens."""
        ends, padding = prompter.eos_token_ids, prompter.pad_token_id
        config = config_of(self.backbone.model, self.generate_kwargs, ends, padding)
        config.max_new_tokens = self._new_tokens(prompter, longest)
        if config.min_new_tokens is not None:  # no longer than the longest report
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
        """The arguments of `model.generate` that are not settings of its config."""
        return arguments_of(self.generate_kwargs, self.backbone.tokenizer)

    def mode(self, prompter: Prompter) -> GenerationMode:
        """The requested decoding method (greedy search, sampling, beam search, ...)."""
        assistant = self.generate_kwargs.get("assistant_model")
        with refusals(self.generate_kwargs):
            return self.config(prompter).get_generation_mode(assistant)

    def seeds(self, prompter: Prompter, count: int) -> list[int] | None:
        """One seed per study where tokens are drawn one by one; else None."""
        if self.mode(prompter) != GenerationMode.SAMPLE or "custom_generate" in self.others():
            return None
        base = seed_of_this_call() if self.seed is None else self.seed
        return list(range(base, base + count))

    def reports(
        self, jobs: Sequence[Job], prompts: list[dict[str, Tensor]], seeds: list[int] | None
    ) -> list[Report]:
        """The reports of a batch that transformers decodes."""
        start = time.perf_counter()
        prompter = jobs[0].prompter
        model: Any = self.backbone.model
        batch = prompter.to_device(prompter.collate(prompts, side="left"))
        config = self.config(prompter, batch["input_ids"].shape[1])
        others = self.others()
        if seeds is not None:
            own = [seeds[job.index] for job in jobs]
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
            error = None if length is None else self.nonfinite_error(job, prompt, answer)
            read = prompt["input_ids"].shape[1]
            reports.append(self.report(job, read, answer, each, config, "transformers", error))
        return reports

    def nonfinite_error(self, job: Job, prompt: Mapping[str, Tensor], answer: list[int]) -> str:
        """The error of a report with unusable logits after `answer`; the first one warns."""
        model, origin = unwrap(self.backbone), None
        # what the caller has attached steered the report only where it has no adapter of its own
        bare: Any = nullcontext() if job.adapter is None else unsteered(model)
        with suppress(DiveError), model_lock(model), bare, steered(model, job.adapter):
            origin = nonfinite_origin(model, job.prompter.to_device(dict(prompt)), answer)
        error = early_end(len(answer), origin)
        if not self.warned:
            self.warned = True
            warnings.warn(
                f'{job.study.id}: {error}; the report ends there (finish_reason "error"; further '
                "ones of this call do not warn)",
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
        """The `Report` of generated `ids`, which padding may follow unless there is an error."""
        study = job.study
        eos: Any = config.eos_token_id
        ends = set(eos if isinstance(eos, list) else [eos])
        stop = next((index for index, token in enumerate(ids) if token in ends), None)
        if stop is not None:
            ids = ids[: stop + 1]
        elif error is None:
            # shorter than the batch and without an end token: ended by a criterion of the caller's
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
                f"image {index}" if isinstance(image, Image.Image) else str(image)
                for index, image in enumerate(study.images)
            ],
            prompt_tokens=prompt_tokens,
            engine=engine,
            error=error,
            **self._steered_by(job.adapter),
        )

    def _steered_by(self, adapter: SteeringAdapter | None) -> dict[str, str]:
        """The name and digest of a report's own adapter."""
        if adapter is None:
            return {}
        if id(adapter) not in self._digests:
            self._digests[id(adapter)] = adapter.weights_sha256()
        sha256 = self._digests[id(adapter)]
        return {"adapter": adapter.name or "adapter", "adapter_sha256": sha256}


def write_reports(
    writer: ReportWriter,
    jobs: list[Job],
    batch_size: int,
    progress: bool | None,
    on_error: str,
    skipped: Skipped,
) -> Iterator[Report]:
    """Yields the reports in order, decoded by the engine where it can."""
    with (
        ThreadPoolExecutor(max_workers=1) as pool,
        progress_bar(len(jobs), batch_size, progress) as bar,
    ):
        prompts = Prompts(jobs, writer.demonstrations, pool, batch_size, on_error, skipped, bar)
        if writer.session is not None:
            config = writer.config(jobs[0].prompter)
            choice = writer.session.engine_choice(generation_config=config, **writer.others())
            if choice.engine == "dive._C":
                yield from write_in_slots(writer, prompts, batch_size)
                return
            writer.session.fallback.note(choice)
        yield from write_in_batches(writer, prompts, batch_size)


def write_in_slots(writer: ReportWriter, prompts: Prompts, slots: int) -> Iterator[Report]:
    """Yields the reports in the order of the studies, of continuous batching in `slots` slots."""
    assert writer.session is not None
    seeds = writer.seeds(prompts.jobs[0].prompter, len(prompts.jobs))
    others = writer.others()
    # requests without an answer yet, by their index
    pending: dict[int, tuple[Job, dict[str, Tensor], GenerationConfig]] = {}
    indices = count()

    def requests() -> Iterator[Request]:
        before: dict[str, Tensor] | None = None
        inputs: dict[str, Tensor] = {}
        for job, prompt in prompts:
            if prompt is not before:
                before, inputs = prompt, job.prompter.to_device(prompt)
            length = prompt["input_ids"].shape[1]
            config = writer.config(job.prompter, length)
            pending[next(indices)] = (job, prompt, config)
            settings = {**others, "generation_config": config}
            seed = None if seeds is None else seeds[job.index]
            yield Request(inputs, settings, job.adapter, seed, writer.streamer)

    done: dict[int, Report] = {}
    following = 0
    for written in writer.session.stream(requests(), slots):
        job, prompt, config = pending.pop(written.index)
        ids, length = written.token_ids, prompt["input_ids"].shape[1]
        error = writer.nonfinite_error(job, prompt, ids) if written.error else None
        done[written.index] = writer.report(
            job, length, ids, written.seconds, config, written.engine, error
        )
        prompts.bar(1)
        while following in done:
            yield done.pop(following)
            following += 1
    if prompts.error is not None:
        raise prompts.error


def write_in_batches(writer: ReportWriter, prompts: Prompts, batch_size: int) -> Iterator[Report]:
    """Yields the reports in order, of batches that transformers decodes."""
    seeds = writer.seeds(prompts.jobs[0].prompter, len(prompts.jobs))
    model = unwrap(writer.backbone)
    with attached_for(model, [job.adapter for job in prompts.jobs]) as attached:
        for chunk in _chunks(prompts, batch_size):
            jobs = [job for job, _ in chunk]
            adapters = None if attached is None else [job.adapter for job in jobs]
            with model_lock(model), steered(model, adapters, attached):
                reports = writer.reports(jobs, [prompt for _, prompt in chunk], seeds)
            yield from reports
            prompts.bar(len(chunk))
    if prompts.error is not None:
        raise prompts.error


def _chunks(prompts: Prompts, size: int) -> Iterator[list[tuple[Job, dict[str, Tensor]]]]:
    """Yields groups of up to `size` prompts with the same end tokens."""
    for _, alike in groupby(prompts, key=lambda one: one[0].prompter.eos_token_ids):
        while chunk := list(islice(alike, size)):
            yield chunk


@contextmanager
def progress_bar(
    total: int, batch_size: int, progress: bool | None, label: str = "reports"
) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, or none; yields the function that advances it by a count."""
    console = PlainConsole(stderr=True)
    if progress is None:
        progress = total > batch_size and console.is_terminal
    if not progress:
        yield lambda count: None
        return
    columns = (column(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
