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
from dive.generation.report_writer import Report, Run, write
from dive.generation.settings import asked_for, check_steps, checked, tell_forbidden
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
    """`generate`, one report at a time: each when it and all before it have ended.

    What is wrong with the arguments is raised at once. Where a study cannot be prompted and
    on_error is "fail", the reports of the studies before it come first. The adapter is attached
    until the last report is taken or the iterator is closed. It works only inside: what the caller
    runs through the model between two reports is not steered.
    """
    backbone = as_backbone(backbone, processor)
    skipped = check_on_error(on_error, skipped)
    studies = as_studies(images_or_studies, on_error, skipped)
    if not studies:
        raise DiveError("there is no image or study to write a report for")
    batch_size = checks.whole("batch_size", batch_size, 1)
    generate_kwargs["max_new_tokens"] = max_new_tokens
    generate_kwargs = checked(backbone.model, backbone.processor, generate_kwargs)
    max_new_tokens = asked_for(generate_kwargs).get("max_new_tokens", MAX_NEW_TOKENS)
    max_new_tokens = checks.whole("max_new_tokens", max_new_tokens, 1)
    least = asked_for(generate_kwargs).get("min_new_tokens")
    if least is not None and least > max_new_tokens:
        warnings.warn(
            f"min_new_tokens is {least} and max_new_tokens {max_new_tokens}: reports are "
            f"{max_new_tokens} tokens long",
            stacklevel=3,
        )
    seed = None if seed is None else as_seed(seed)
    check_kinds({"streamer": streamer})
    if streamer is not None and len(studies) > 1:
        raise DiveError(f"a streamer takes one study at a time, got {len(studies)}")
    checks.engine(engine)
    adapters = _one_a_study(adapter, studies)
    jobs: list[Job] = []
    prompters: dict[int, Prompter] = {}
    for number, (study, own) in enumerate(zip(studies, adapters, strict=True)):
        if id(own) not in prompters:
            if own is not None and own.config.positions == "response":
                check_steps(generate_kwargs)
            if own is not None:  # another backbone's explains what the prompter would warn of
                own.check_backbone(backbone.model)
            prompters[id(own)] = prompter_for(
                backbone,
                own,
                prompt=prompt,
                target=target,
                max_image_tokens=max_image_tokens,
                template=template,
                template_date=template_date,
            )
        jobs.append(Job(number, study, prompters[id(own)], own))
    for prompter in prompters.values():
        shown = _shown(demonstrations, prompter)
    run = Run(backbone, shown, max_new_tokens, streamer, generate_kwargs, seed=seed)
    mode = run.mode(jobs[0].prompter)  # which looks at the settings, before a study is read
    tell_forbidden(backbone.model, generate_kwargs)
    if engine == "dive._C" or (engine == "auto" and "custom_generate" not in generate_kwargs):
        # each request brings its adapter
        run.session = DecodeSession(backbone, strict=engine == "dive._C")
    if seed is not None:
        if "custom_generate" in generate_kwargs:
            raise DiveError("seed does not go with custom_generate; call torch.manual_seed before")
        if mode == GenerationMode.GREEDY_SEARCH:
            raise DiveError(
                "seed has no use without sampling: greedy decoding draws nothing; give "
                "do_sample=True too, or leave it out"
            )
        if mode != GenerationMode.SAMPLE:
            raise DiveError(f"seed does not go with {mode.value}; call torch.manual_seed before it")
    reports = write(run, jobs, batch_size, progress, on_error, skipped)
    model = unwrap(backbone)
    return iterate_within(partial(evaluating, model), each_of_its_own(model, reports))


def _takes_what(other: Callable[P, Any]) -> Callable[[Callable[..., T]], Callable[P, T]]:
    """For a function that hands its arguments on to `other`: it shows the same parameters, to
    `inspect.signature`, help() and type checkers, which are written down once."""

    def taken(function: Any) -> Any:
        own = inspect.signature(function)
        theirs = inspect.signature(other)
        function.__signature__ = theirs.replace(return_annotation=own.return_annotation)
        function.__annotations__ = {**other.__annotations__, "return": own.return_annotation}
        return function

    return taken


@_takes_what(iter_reports)
def generate(*given: Any, **named: Any) -> list[Report]:
    """Write one report for each image or study, in the order given.

    Args:
        backbone: from `load_backbone`, or what it takes, or a bare model together with `processor`.
            LoRA and its kin (PEFT) are at work as they are; wrappers are looked through.
        images_or_studies: a path, PIL image or `Study`, or many of them. A sequence of images
            inside the sequence is one study of several images: `[[frontal, lateral]]`. Also rows
            as dicts, a .jsonl file, or a dataset as the command line names it.
        prompt: what the model is asked. Default: the prompt that the adapter was trained with,
            else `prompting.DEFAULT_PROMPTS[target]`. Another prompt than the adapter's warns.
        adapter: an adapter or its folder, attached while the model runs and gone afterwards. A list
            with one adapter, or None for no steering, for every image or study, or a mapping from
            their ids, steers each report by its own, all in the same steps. With
            positions="response" an image that comes several times in a row is read once for all
            its adapters.
        demonstrations: studies with reports, shown before the query (k-shot prompting). One that
            has the query's id or patient is left out for that query, with a line of log.
        max_new_tokens: longest report; default: the given generation_config's, else 256. Cut
            down, with a warning, to what the context has left.
        batch_size: reports that are written at once. When one ends, the next study takes its
            place; where transformers decodes, batches wait for their longest report.
        target: "findings", "impression" or "both"; chooses the default prompt and the
            demonstrations' text. Default: the adapter's, else "findings".
        max_image_tokens: budget an image (see `Prompter`); "auto" is the adapter's, else 576.
        template: a chat template in place of the model's; default: the adapter's, if it has one.
        template_date: what a template that prints the date prints, as "2024-07-26" or a
            `datetime.date`; default: the day of the adapter's training, else today.
        streamer: as in transformers; for a single image or study.
        progress: a progress bar on stderr; None shows one for more than one batch on a terminal.
        on_error: "fail" raises at the first study that cannot be prompted; "skip" goes on and
            records it in `skipped`: fewer reports than studies come back. A report whose logits
            are not finite, or all the same, comes back under both, with finish_reason "error"
            and what was written until then; the first one of a call warns.
        engine: "auto" decodes in `dive._C` where it can (see `dive.decode.DecodeSession`),
            "transformers" never does, and "dive._C" raises where it cannot. The reports are the
            same; each says what decoded it.
        seed: of sampling (do_sample=True); without it an error. Report i is drawn with `seed + i`,
            whatever the batch size: it is the report that `torch.manual_seed(seed + i)` gives for
            its study alone (in half precision up to the last bits of its logits, which one row sums
            in another order than several).
            None takes a seed from torch's generator, so that `torch.manual_seed` repeats a call.
        generate_kwargs: settings and arguments of `model.generate`; a generation_config may be a
            dict, and what is given by name wins over it. Lengths are the report's own: max_length
            and min_length, which count the prompt, are refused where max_new_tokens and
            min_new_tokens do not say instead. None is as not given, except that it switches off
            what would limit sampling (top_k and its kin) or forbid tokens. Without them decoding is
            greedy: sampling, beams, penalties, lengths and all else in the model's
            generation_config.json are not used, but for ids of tokens and the tokens that it
            forbids (suppress_tokens, begin_suppress_tokens, bad_words_ids, with a line of log).
            With do_sample=True it proposes temperature, top_k and the like where you do not.

    Raises:
        DiveError: unreadable image, overlong prompt, no studies, an adapter of another backbone.
    """
    inspect.signature(generate).bind(*given, **named)  # so that a TypeError is about this call
    return list(iter_reports(*given, **named))


def _one_a_study(adapter: Any, studies: list[Study]) -> list[SteeringAdapter | None]:
    """The adapter of each study."""
    if adapter is None:
        return [None] * len(studies)
    if isinstance(adapter, Mapping):
        missing = [study.id for study in studies if study.id not in adapter]
        if missing:
            raise DiveError(
                f"adapter has no entry for {missing[0]!r}; wants an adapter or None for every id"
            )
        adapters = [adapter[study.id] for study in studies]
    elif isinstance(adapter, (list, tuple)):
        if len(adapter) != len(studies):
            raise DiveError(
                f"adapter has {len(adapter)} entries for {len(studies)} images or studies; wants "
                "one for each"
            )
        adapters = list(adapter)
    else:
        return [as_adapter(adapter)] * len(studies)
    read: dict[str, SteeringAdapter] = {}  # of a folder that is named several times, one adapter
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
    """A prompter as the adapter was trained with; what is given instead of it warns."""
    stored = {} if adapter is None else adapter.metadata
    asked = asked_by(stored, prompt, target, max_image_tokens)
    kept = stored.get("template")
    if template is None and kept is not None:
        template = StoredTemplate(checks.text("the adapter's metadata.template", kept))
    assumed = template_date is None or isinstance(template_date, AssumedDay)
    prompter = Prompter(
        backbone,
        **asked,
        template=template,
        template_date=(stored.get("template_date") or template_date) if assumed else template_date,
    )
    harm = "it may do nothing or harm"
    for name in ("prompt", "target", "max_image_tokens"):
        used = getattr(prompter, name)
        # no limit of image tokens is one, too; elsewhere null is what is not known
        known = name in stored and (stored[name] is not None or name == "max_image_tokens")
        if known and stored[name] != used:
            warnings.warn(
                f"the adapter was trained with {name} {stored[name]!r}, and {used!r} is used: "
                f"{harm}",
                stacklevel=4,
            )
    other = difference(stored, prompter.template.metadata())
    if other is not None:
        warnings.warn(
            f"the adapter was trained with template_hash {stored['template_hash']!r}, and "
            f"{prompter.template_hash!r} is used: {harm}; what differs: {other}",
            stacklevel=4,
        )
    dateless = "template_hash" in stored and "template_date" not in stored
    if dateless and assumed and prompter.template_date is not None:
        warnings.warn(
            f"the chat template prints the date, and the adapter does not say which one it was "
            f"trained with: {prompter.template_date} is used; give template_date",
            stacklevel=4,
        )
    return prompter


def asked_by(
    stored: Mapping[str, Any], prompt: str | None, target: str | None, max_image_tokens: Any
) -> dict[str, Any]:
    """Prompt, target and image budget that are in use, of an adapter's metadata and of what is
    given instead of it; the prompt is None where it is the target's default."""
    if prompt is None and target in (None, stored.get("target", target)):
        prompt = stored.get("prompt")  # it would ask for the wrong section otherwise
    if max_image_tokens == "auto":
        max_image_tokens = stored.get("max_image_tokens", DEFAULT_MAX_IMAGE_TOKENS)
    target = target or stored.get("target") or "findings"
    return {"prompt": prompt, "target": target, "max_image_tokens": max_image_tokens}


def _shown(demonstrations: Sequence[Study] | None, prompter: Prompter) -> Demonstrations | None:
    """The demonstrations, checked, with their images decoded: every query shows them again."""
    given: Any = [] if demonstrations is None else demonstrations
    shown = as_studies_of(given, "demonstrations", prompter.target)
    for one in shown:
        one.report(prompter.target)
    pool = [replace(one, images=tuple(one.load_images())) for one in shown]
    return Demonstrations(pool) if pool else None
