"""From studies to reports through vLLM's engine, in order, with a bounded number under way."""

import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, NamedTuple

from dive.data.datasets.json_lines import Skipped
from dive.generation.nonfinite_origin import early_end
from dive.generation.prefetch import Job, Prompts
from dive.generation.report_writer import Report, ReportWriter, progress_bar
from dive.vllm.decoding import own_ends, sampling_arguments
from dive.vllm.running import Engine, Written

ENGINE = "vllm"  # in `Report.engine`
_DECODED_AHEAD = 8  # most films that wait, decoded, for their request
_ROUNDING = 1e-5  # of the log-softmax of equal logits


def write_reports(
    writer: ReportWriter,
    opening: AbstractContextManager[Engine],
    jobs: list[Job],
    batch_size: int,
    progress: bool | None,
    on_error: str,
    skipped: Skipped,
) -> Iterator[Report]:
    """Yields the reports in the order of the jobs.

    A quarter more requests than are decoded at once are under way, so that one waits when another
    ends; films are opened when their request is made.
    """
    most = batch_size + max(batch_size // 4, 1)
    under_way: dict[str, _UnderWay] = {}
    done: dict[int, Report] = {}
    following = 0
    seeds = writer.seeds(jobs[0].prompter, len(jobs))  # of the caller's generator, not vLLM's
    with (
        opening as engine,
        ThreadPoolExecutor(max_workers=1) as pool,
        progress_bar(len(jobs), batch_size, progress) as bar,
    ):
        ahead = min(batch_size, _DECODED_AHEAD)
        make = engine.requests.make
        prompts = Prompts(jobs, writer.demonstrations, pool, ahead, on_error, skipped, bar, make)
        adding = _added(writer, engine, prompts, seeds)
        try:
            while True:
                under_way.update(islice(adding, most - len(under_way)))
                if not under_way:
                    break
                for written in engine.step():
                    one = under_way.pop(written.name)
                    done[one.index] = _report(writer, engine, one, written)
                    bar(1)
                while following in done:
                    yield done.pop(following)
                    following += 1
        finally:
            engine.abort()
        if prompts.error is not None:
            raise prompts.error


class _UnderWay(NamedTuple):
    """A report that the engine writes: its index among the prompts, the prompt's tokens, and its
    decoding."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which has no use here
    job: Job
    length: int
    config: Any


def _added(
    writer: ReportWriter, engine: Engine, prompts: Prompts, seeds: Sequence[int] | None
) -> Iterator[tuple[str, _UnderWay]]:
    """Adds a request per prompt to the engine, when it is asked for; yields the engine's names."""
    ends = own_ends(writer.backbone)
    for index, (job, request) in enumerate(prompts):
        length = len(request)
        config = _config(writer, engine, job, length)
        seed = None if seeds is None else seeds[job.index]
        name = engine.add(request, sampling_arguments(config, ends, seed), job.adapter)
        yield name, _UnderWay(index, job, length, config)


def _config(writer: ReportWriter, engine: Engine, job: Job, length: int) -> Any:
    """The decoding of one report, which ends where the engine's context does."""
    config = writer.config(job.prompter, length)
    left = engine.max_model_len - length
    if config.max_new_tokens > left:
        warnings.warn(
            f"a prompt of {length} tokens leaves {left} of the engine's max_model_len of "
            f"{engine.max_model_len} for the report; max_new_tokens was {config.max_new_tokens}",
            stacklevel=2,
        )
        config.max_new_tokens = left
        if config.min_new_tokens is not None:
            config.min_new_tokens = min(config.min_new_tokens, left)
    return config


def _report(writer: ReportWriter, engine: Engine, one: _UnderWay, written: Written) -> Report:
    """The report of what the engine wrote, which ends before unusable logits."""
    ids, error = written.token_ids, None
    usable = usable_tokens(written.most_likely, engine.vocab_size)
    if usable < len(ids):
        ids, error = ids[:usable], early_end(usable, None)
    elif written.reason not in ("stop", "length"):
        error = f"vLLM ended it after {len(ids)} tokens: {written.reason}"
    if error is not None and not writer.warned:
        writer.warned = True
        warnings.warn(
            f'{one.job.study.id}: {error}; the report ends there (finish_reason "error"; further '
            "ones of this call do not warn)",
            stacklevel=2,
        )
    seconds = written.seconds
    return writer.report(one.job, one.length, ids, seconds, one.config, ENGINE, error)


def usable_tokens(most_likely: Sequence[float], vocab_size: int) -> int:
    """The number of tokens before the first whose logits are unusable: not finite, or all the same.

    most_likely: log-probabilities of the most likely token. It is NaN where a logit is NaN or
    +inf, and at its least, -log(vocab_size), where all logits are the same.
    """
    least = -math.log(vocab_size) + _ROUNDING if vocab_size > 1 else -math.inf
    for at, value in enumerate(most_likely):
        if not math.isfinite(value) or value <= least:
            return at
    return len(most_likely)
