"""Reports that vLLM writes, on the studies, prompts and settings of `dive.generate`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dive.adapter.adapter import SteeringAdapter
from dive.backbone.load import Backbone, source_of
from dive.backbone.without_weights import load_without_weights
from dive.data.datasets.json_lines import Skipped, check_on_error
from dive.data.given import Item, as_studies
from dive.data.study import Study
from dive.decode.sampling import as_seed
from dive.errors import DiveError, checks
from dive.generation.generate_reports import (
    Adapters,
    adapter_per_study,
    check_sampling,
    jobs_for,
    longest_report,
    shown_demonstrations,
    with_signature_of,
)
from dive.generation.report_writer import Report, ReportWriter
from dive.generation.settings import checked, log_forbidden_tokens
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.prompter import Prompter
from dive.vllm.adapters import check_together
from dive.vllm.decoding import check_settings, own_ends, sampling_arguments
from dive.vllm.installed import check_architecture, check_device, check_installed
from dive.vllm.running import BATCH_SIZE, Engine, checked_options
from dive.vllm.writing import write_reports


def iter_reports(
    backbone: str | Path | Engine,
    images_or_studies: Item | Iterable[Item],
    prompt: str | None = None,
    adapter: Adapters | None = None,
    demonstrations: Sequence[Study] | None = None,
    *,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    target: str | None = None,
    max_image_tokens: int | str | None = "auto",
    template: str | Path | None = None,
    template_date: Any = None,
    progress: bool | None = None,
    on_error: str = "fail",
    skipped: Skipped | None = None,
    seed: int | None = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    engine_options: Mapping[str, Any] | None = None,
    **generate_kwargs: Any,
) -> Iterator[Report]:
    """As `dive.generation.iter_reports`, decoded by vLLM, which has the only copy of the weights.

    Wrong arguments raise at once; the engine is opened when the first report is taken, and closed
    after the last or with the iterator. Each prompt is compared with what vLLM makes of it.

    Args:
        backbone: a folder or hub id, or an `Engine` that is open and stays so; batch_size, dtype,
            device and engine_options are the engine's then.
        batch_size: reports that are decoded at once; default 64.
        seed: with do_sample=True report i is drawn with `seed + i`. The draws repeat themselves,
            and are not those of the other engines.
        engine_options: further arguments of `vllm.LLM`: tensor_parallel_size, quantization,
            gpu_memory_utilization, max_model_len ...
        generate_kwargs: settings of decoding as in `dive.generate`; those that vLLM does not have
            (beams, custom logits processors, several a step) are refused by name.

    Raises:
        DiveError: as `dive.generate`, and where vLLM is missing, too old, has no model for the
            backbone or lacks a setting; a prompt of which vLLM makes other tokens; prompts beyond
            max_model_len.
    """
    check_installed()
    skipped = check_on_error(on_error, skipped)
    studies = as_studies(images_or_studies, on_error, skipped)
    if not studies:
        raise DiveError("there is no image or study to write a report for")
    source = _source(backbone, batch_size, dtype, device, engine_options)
    bare = source.backbone
    given = {**generate_kwargs, "max_new_tokens": max_new_tokens}
    kwargs = checked(bare.model, bare.processor, given)
    jobs = jobs_for(
        bare,
        studies,
        adapter_per_study(adapter, studies),
        kwargs,
        prompt=prompt,
        target=target,
        max_image_tokens=max_image_tokens,
        template=template,
        template_date=template_date,
    )
    adapters = [job.adapter for job in jobs if job.adapter is not None]
    check_together(adapters)
    for prompter in {id(job.prompter): job.prompter for job in jobs}.values():
        shown = shown_demonstrations(demonstrations, prompter)
    own_seed = None if seed is None else as_seed(seed)
    writer = ReportWriter(bare, shown, longest_report(kwargs), None, kwargs, seed=own_seed)
    _check_decoding(writer, jobs[0].prompter)
    log_forbidden_tokens(bare.model, kwargs)
    opening = source.opening(adapters, most_images(studies, shown))
    return write_reports(writer, opening, jobs, source.batch_size, progress, on_error, skipped)


@dataclass(frozen=True)
class _Source:
    """A backbone's processor and settings, and how its engine comes about.

    opening: a context of the engine, for these adapters and prompts of up to so many images.
    """

    backbone: Backbone
    batch_size: int
    opening: Callable[[Sequence[SteeringAdapter], int], AbstractContextManager[Engine]]


def _source(
    backbone: str | Path | Engine,
    batch_size: int | None,
    dtype: str | torch.dtype,
    device: str,
    engine_options: Mapping[str, Any] | None,
) -> _Source:
    if isinstance(backbone, Engine):
        own = {"batch_size": batch_size, "engine_options": engine_options}
        _check_not_given(own, dtype=dtype, device=device)
        return _Source(backbone.backbone, backbone.batch_size, partial(_as_it_is, backbone))
    size = checks.whole("batch_size", BATCH_SIZE if batch_size is None else batch_size, 1)
    checked_options(engine_options)
    check_device(device)
    bare = load_without_weights(backbone)
    check_architecture(source_of(backbone), bare.model.config)
    opening = partial(
        opened,
        backbone,
        batch_size=size,
        dtype=dtype,
        device=device,
        engine_options=engine_options,
    )
    return _Source(bare, size, opening)


def _as_it_is(
    engine: Engine, adapters: Sequence[SteeringAdapter], max_images: int
) -> AbstractContextManager[Engine]:
    if max_images > engine.max_images:
        raise DiveError(
            f"a prompt has up to {max_images} images, and the engine was opened for "
            f"{engine.max_images}: want max_images={max_images}"
        )
    engine.forget_changed(adapters)
    return nullcontext(engine)


def _check_not_given(none: Mapping[str, Any], **auto: Any) -> None:
    """Raises DiveError for an argument that an open engine has already: one of `none` that is not
    None or empty, or of `auto` that is not "auto"."""
    given = {name: value for name, value in none.items() if value not in (None, {})}
    given |= {name: value for name, value in auto.items() if value != "auto"}
    for name, value in given.items():
        raise DiveError(f"{name} is {value!r}, and an open Engine has its own: leave it out")


def _check_decoding(writer: ReportWriter, prompter: Prompter) -> None:
    """Raises DiveError for settings that vLLM does not have, before an engine is opened."""
    mode = writer.mode(prompter)
    check_settings(mode, writer.generate_kwargs)
    sampling_arguments(writer.config(prompter), own_ends(writer.backbone), None)
    if writer.seed is not None:
        check_sampling(mode, writer.generate_kwargs)


@contextmanager
def opened(
    backbone: str | Path, adapters: Sequence[SteeringAdapter], max_images: int, **options: Any
) -> Iterator[Engine]:
    """An `Engine` inside the context, opened when it is entered."""
    with Engine(backbone, adapters, max_images=max_images, **options) as engine:
        yield engine


def most_images(studies: Iterable[Study], shown: Demonstrations | None) -> int:
    """The most images of one prompt: of a study, and of all demonstrations."""
    before = sum(len(one.images) for one in shown.pool) if shown is not None else 0
    return before + max(len(one.images) for one in studies)


@with_signature_of(iter_reports)
def generate(*given: Any, **named: Any) -> list[Report]:
    """As `dive.generate`, decoded by vLLM: the reports of `iter_reports` as a list."""
    return list(iter_reports(*given, **named))
