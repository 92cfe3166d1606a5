"""`dive.generate`: reports from images or studies, with an adapter, demonstrations, or neither."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from transformers import PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from dive.adapter.adapter import SteeringAdapter, as_adapter
from dive.adapter.attach import each_of_its_own
from dive.backbone.as_backbone import as_backbone
from dive.backbone.generator_context import iterate_within
from dive.backbone.load import Backbone
from dive.backbone.modes import evaluating
from dive.backbone.structure import unwrap
from dive.data.datasets.json_lines import Skipped, check_on_error
from dive.data.given import Item, as_studies, as_studies_of
from dive.data.study import Study
from dive.decode.sampling import as_seed
from dive.decode.session import DecodeSession
from dive.decode.setting_checks import check_kinds
from dive.errors import DiveError, checks
from dive.generation.prefetch import Job
from dive.generation.report_writer import Report, ReportWriter, write_reports
from dive.generation.settings import check_steps, checked, log_forbidden_tokens, requested_settings
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.prompter import DEFAULT_MAX_IMAGE_TOKENS, Prompter
from dive.prompting.template_clock import AssumedDay
from dive.prompting.templates import StoredTemplate, difference

P = ParamSpec("P")
T = TypeVar("T")

MAX_NEW_TOKENS = 256
Adapter = SteeringAdapter | str | Path
Adapters = Adapter | Sequence[Adapter | None] | Mapping[str, Adapter | None]


def iter_reports(
    backbone: Backbone | PreTrainedModel,
    images_or_studies: Item | Iterable[Item],
    prompt: str | None = None,
    adapter: Adapters | None = None,
    demonstrations: Sequence[Study] | None = None,
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    target: str | None = None,
    max_image_tokens: int | str | None = "auto",
    template: str | Path | None = None,
    template_date: Any = None,
    processor: Any = None,
    streamer: Any = None,
    progress: bool | None = None,
    on_error: str = "fail",
    skipped: Skipped | None = None,
    engine: str = "auto",
    seed: int | None = None,
    **generate_kwargs: Any,
) -> Iterator[Report]:
    """As `generate`, but yields the reports in order, each when it and all before it are done.

    Wrong arguments raise at once. Where a study cannot be prompted and on_error is "fail", the
    reports of the studies before it come first. The adapter is attached until the last report is
    taken or the iterator is closed. It steers these reports alone: what the caller runs through the
    model between two of them is not steered.
    """
    backbone = as_backbone(backbone, processor)
    skipped = check_on_error(on_error, skipped)
    studies = as_studies(images_or_studies, on_error, skipped)
    if not studies:
        raise DiveError("there is no image or study to write a report for")
    batch_size = checks.whole("batch_size", batch_size, 1)
    generate_kwargs["max_new_tokens"] = max_new_tokens
    generate_kwargs = checked(backbone.model, backbone.processor, generate_kwargs)
    max_new_tokens = longest_report(generate_kwargs)
    seed = None if seed is None else as_seed(seed)
    check_kinds({"streamer": streamer})
    if streamer is not None and len(studies) > 1:
        raise DiveError(f"a streamer takes one study at a time, got {len(studies)}")
    checks.engine(engine)
    jobs = jobs_for(
        backbone,
        studies,
        adapter_per_study(adapter, studies),
        generate_kwargs,
        prompt=prompt,
        target=target,
        max_image_tokens=max_image_tokens,
        template=template,
        template_date=template_date,
    )
    for prompter in {id(job.prompter): job.prompter for job in jobs}.values():
        shown = shown_demonstrations(demonstrations, prompter)
    writer = ReportWriter(backbone, shown, max_new_tokens, streamer, generate_kwargs, seed=seed)
    mode = writer.mode(jobs[0].prompter)  # checks the settings before a study is read
    log_forbidden_tokens(backbone.model, generate_kwargs)
    if engine == "dive._C" or (engine == "auto" and "custom_generate" not in generate_kwargs):
        # without an adapter of its own, as each request has one
        writer.session = DecodeSession(backbone, strict=engine == "dive._C")
    if seed is not None:
        check_sampling(mode, generate_kwargs)
    reports = write_reports(writer, jobs, batch_size, progress, on_error, skipped)
    model = unwrap(backbone)
    return iterate_within(partial(evaluating, model), each_of_its_own(model, reports))


def longest_report(generate_kwargs: Mapping[str, Any]) -> int:
    """The requested max_new_tokens, or its default."""
    settings = requested_settings(generate_kwargs)
    most = checks.whole("max_new_tokens", settings.get("max_new_tokens", MAX_NEW_TOKENS), 1)
    least = settings.get("min_new_tokens")
    if least is not None and least > most:
        warnings.warn(
            f"min_new_tokens is {least} and max_new_tokens {most}: reports are {most} tokens long",
            stacklevel=4,
        )
    return most


def jobs_for(
    backbone: Backbone,
    studies: list[Study],
    adapters: list[SteeringAdapter | None],
    generate_kwargs: Mapping[str, Any],
    **prompting: Any,
) -> list[Job]:
    """One job per study; those with the same adapter share a prompter, of `prompting`."""
    jobs: list[Job] = []
    prompters: dict[int, Prompter] = {}
    for index, (study, own) in enumerate(zip(studies, adapters, strict=True)):
        if id(own) not in prompters:
            if own is not None:
                if own.config.positions == "response":
                    check_steps(generate_kwargs)
                # before the prompter, which would warn of what another backbone explains
                own.check_backbone(backbone.model)
            prompters[id(own)] = prompter_for(backbone, own, **prompting)
        jobs.append(Job(index, study, prompters[id(own)], own))
    return jobs


def check_sampling(mode: GenerationMode, generate_kwargs: Mapping[str, Any]) -> None:
    """Raises DiveError where the decoding draws no token by a seed."""
    if "custom_generate" in generate_kwargs:
        raise DiveError("seed does not go with custom_generate; call torch.manual_seed before")
    if mode == GenerationMode.GREEDY_SEARCH:
        raise DiveError(
            "seed has no use without sampling: greedy decoding draws nothing; give "
            "do_sample=True too, or leave it out"
        )
    if mode != GenerationMode.SAMPLE:
        raise DiveError(f"seed does not go with {mode.value}; call torch.manual_seed before it")


def with_signature_of(other: Callable[P, Any]) -> Callable[[Callable[..., T]], Callable[P, T]]:
    """Decorator of a function that passes its arguments on to `other`.

    `inspect.signature`, help() and type checkers show the parameters of `other`, which are so
    written only once.
    """

    def taken(function: Any) -> Any:
        own = inspect.signature(function)
        theirs = inspect.signature(other)
        function.__signature__ = theirs.replace(return_annotation=own.return_annotation)
        function.__annotations__ = {**other.__annotations__, "return": own.return_annotation}
        return function

    return taken


@with_signature_of(iter_reports)
def generate(*given: Any, **named: Any) -> list[Report]:
    """Write one report for each image or study, in the order given.

    Args:
        backbone: from `load_backbone`, or its argument, or a bare model together with `processor`.
            LoRA and other PEFT adapters stay active; wrappers are unwrapped.
        images_or_studies: a path, PIL image or `Study`, or many of them. A sequence of images
            inside the sequence is one study of several images: `[[frontal, lateral]]`. Also records
            as dicts, a .jsonl file, or a dataset as the command line names it.
        prompt: the instruction to the model. Default: the prompt that the adapter was trained with,
            else `prompting.DEFAULT_PROMPTS[target]`. Another prompt than the adapter's warns.
        adapter: an adapter or its folder, attached while the model runs and detached afterwards. A
            list with one adapter, or None for no steering, per image or study, or a mapping from
            their ids, steers each report by its own, all in the same decode steps. With
            positions="response" consecutive studies with the same image share a prefill.
        demonstrations: studies with reports, shown before the query (k-shot prompting). One that
            has the query's id or patient is left out for that query, with a log message.
        max_new_tokens: longest report, in tokens; default: that of the generation_config, else 256.
            Reduced, with a warning, to what the context has left.
        batch_size: reports that are decoded at once. When one ends, the next study takes its slot;
            where transformers decodes, batches wait for their longest report.
        target: "findings", "impression" or "both"; chooses the default prompt and the
            demonstrations' text. Default: the adapter's, else "findings".
        max_image_tokens: budget per image (see `Prompter`); "auto" is the adapter's, else 576.
        template: a chat template in place of the model's; default: the adapter's, if it has one.
        template_date: what a template that prints the date prints, as "2024-07-26" or a
            `datetime.date`; default: the day of the adapter's training, else today.
        streamer: as in transformers; for a single image or study.
        progress: a progress bar on stderr; None shows one for more than one batch on a terminal.
        on_error: "fail" raises at the first study that cannot be prompted; "skip" goes on and
            records it in `skipped`: fewer reports than studies are returned. A report whose logits
            are not finite, or all the same, is returned under both, with finish_reason "error"
            and the text before; the first one of a call warns.
        engine: "auto" decodes in `dive._C` where it can (see `dive.decode.DecodeSession`),
            "transformers" never does, and "dive._C" raises where it cannot. The reports are the
            same; `Report.engine` has the one that decoded it.
        seed: of sampling (do_sample=True); an error with greedy decoding. Report i is drawn with
            `seed + i`, whatever the batch size: it is the report of `torch.manual_seed(seed + i)`
            for its study alone (in half precision up to the last bits of its logits, as a single
            sequence sums in another order than several).
            None takes a seed from torch's generator, so that `torch.manual_seed` repeats a call.
        generate_kwargs: settings and arguments of `model.generate`; a generation_config may be a
            dict, and arguments given by name override it. Lengths are the report's own: max_length
            and min_length, which count the prompt, are refused unless max_new_tokens and
            min_new_tokens are given instead. None counts as not given, except that it switches off
            what would limit sampling (top_k and the like) or forbid tokens. Without them decoding
            is greedy: sampling, beams, penalties, lengths and all other settings of the model's
            generation_config.json are ignored, except token ids and the tokens that it forbids
            (suppress_tokens, begin_suppress_tokens, bad_words_ids, with a log message). With
            do_sample=True its temperature, top_k and the like hold where you give none.

    Raises:
        DiveError: unreadable image, overlong prompt, no studies, an adapter of another backbone.
    """
    inspect.signature(generate).bind(*given, **named)  # so that a TypeError is about this call
    return list(iter_reports(*given, **named))


def adapter_per_study(adapter: Any, studies: list[Study]) -> list[SteeringAdapter | None]:
    """The adapter of each study."""
    if adapter is None:
        return [None] * len(studies)
    if isinstance(adapter, Mapping):
        missing = [study.id for study in studies if study.id not in adapter]
        if missing:
            raise DiveError(
                f"adapter has no entry for {missing[0]!r}, want an adapter or None for every id"
            )
        adapters = [adapter[study.id] for study in studies]
    elif isinstance(adapter, (list, tuple)):
        if len(adapter) != len(studies):
            raise DiveError(
                f"adapter has {len(adapter)} entries for {len(studies)} images or studies, want "
                "one per image or study"
            )
        adapters = list(adapter)
    else:
        return [as_adapter(adapter)] * len(studies)
    read: dict[str, SteeringAdapter] = {}  # a folder that is named several times is read once
    found: list[SteeringAdapter | None] = []
    for one in adapters:
        if isinstance(one, (str, Path)):
            one = read.setdefault(str(one), read.get(str(one)) or as_adapter(one))
        found.append(None if one is None else as_adapter(one))
    return found


def prompter_for(
    backbone: Backbone,
    adapter: SteeringAdapter | None = None,
    *,
    prompt: str | None = None,
    target: str | None = None,
    max_image_tokens: int | str | None = "auto",
    template: str | Path | None = None,
    template_date: Any = None,
) -> Prompter:
    """The prompter with which the adapter was trained; arguments that change it warn."""
    stored = {} if adapter is None else adapter.metadata
    prompting = prompt_settings(stored, prompt, target, max_image_tokens)
    kept = stored.get("template")
    if template is None and kept is not None:
        template = StoredTemplate(checks.text("the adapter's metadata.template", kept))
    assumed = template_date is None or isinstance(template_date, AssumedDay)
    prompter = Prompter(
        backbone,
        **prompting,
        template=template,
        template_date=(stored.get("template_date") or template_date) if assumed else template_date,
    )
    harm = "it may do nothing or harm"
    for name in ("prompt", "target", "max_image_tokens"):
        used = getattr(prompter, name)
        # None is a value of max_image_tokens, no limit; of the others it means unknown
        known = name in stored and (stored[name] is not None or name == "max_image_tokens")
        if known and stored[name] != used:
            warnings.warn(
                f"the adapter was trained with {name} {stored[name]!r}, and {used!r} is used: "
                f"{harm}",
                stacklevel=5,
            )
    other = difference(stored, prompter.template.metadata())
    if other is not None:
        warnings.warn(
            f"the adapter was trained with template_hash {stored['template_hash']!r}, and "
            f"{prompter.template_hash!r} is used: {harm}; what differs: {other}",
            stacklevel=5,
        )
    dateless = "template_hash" in stored and "template_date" not in stored
    if dateless and assumed and prompter.template_date is not None:
        warnings.warn(
            f"the chat template prints the date, and the adapter does not say which one it was "
            f"trained with: {prompter.template_date} is used; give template_date",
            stacklevel=5,
        )
    return prompter


def prompt_settings(
    stored: Mapping[str, Any], prompt: str | None, target: str | None, max_image_tokens: Any
) -> dict[str, Any]:
    """The prompt, target and image budget in use, of an adapter's metadata (`stored`) and of the
    arguments that override it; the prompt is None where it is the target's default."""
    if prompt is None and target in (None, stored.get("target", target)):
        prompt = stored.get("prompt")  # it would ask for the wrong section otherwise
    if max_image_tokens == "auto":
        max_image_tokens = stored.get("max_image_tokens", DEFAULT_MAX_IMAGE_TOKENS)
    target = target or stored.get("target") or "findings"
    return {"prompt": prompt, "target": target, "max_image_tokens": max_image_tokens}


def shown_demonstrations(
    demonstrations: Sequence[Study] | None, prompter: Prompter
) -> Demonstrations | None:
    """The demonstrations, checked, with their images decoded once for all queries."""
    given: Any = [] if demonstrations is None else demonstrations
    shown = as_studies_of(given, "demonstrations", prompter.target)
    for one in shown:
        one.report(prompter.target)
    pool = [replace(one, images=tuple(one.load_images())) for one in shown]
    return Demonstrations(pool) if pool else None
