"""`dive distill`: studies in, an adapter folder out."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from dive.cli.options import (
    BackboneOption,
    DeviceOption,
    DropComparisonsOption,
    DtypeOption,
    ImagesRootOption,
    ImageTokensOption,
    JsonOption,
    OnErrorOption,
    PromptOption,
    ReadOption,
    ReportsRootOption,
    SplitOption,
    StudiesOption,
    TargetOption,
    TemplateDateOption,
    TemplateOption,
    check_values,
    demonstrations_of,
    image_budget,
    number_or_file,
    open_all,
    open_backbone,
    pairs,
    place,
    reading,
    write_skipped,
)
from dive.console import to_stderr
from dive.errors import DiveError
from dive.errors.counting import counted
from dive.errors.visible import visible_json


def distill(
    context: typer.Context,
    backbone: BackboneOption,
    studies: StudiesOption,
    out: Annotated[
        Path, typer.Option("--out", parser=place, metavar="FOLDER", help="For the adapter.")
    ],
    validation: Annotated[
        str | None,
        typer.Option("--validation", help="A file of studies, or the share of --studies."),
    ] = None,
    demonstrations: Annotated[
        str | None,
        typer.Option(
            "--demonstrations",
            help="Shown to the teacher: how many to draw from --studies, or a file of studies. "
            "Default 4 where the preset runs a teacher.",
        ),
    ] = None,
    target: TargetOption = "findings",
    prompt: PromptOption = None,
    preset: Annotated[
        str | None, typer.Option(help="dive (default), dive-ce, live or fixed-ce.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Default: the preset's.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Default 4.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; wins over --epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default 8.")] = None,
    gradient_accumulation: Annotated[int | None, typer.Option(help="Default 1.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the preset's.")] = None,
    pathology_weight: Annotated[float | None, typer.Option(help="Default: the preset's.")] = None,
    eos_weight: Annotated[float | None, typer.Option(help="Default: the preset's.")] = None,
    polarity: Annotated[str | None, typer.Option(help="positive (default) or all.")] = None,
    decisive: Annotated[
        str | None,
        typer.Option(
            "--decisive",
            help="What names the pathology: lexicon (default), radgraph, or radgraph:X with a type "
            "of model, a folder of weights, or a file of annotations.",
        ),
    ] = None,
    ce_weight: Annotated[float | None, typer.Option(help="Default: the preset's.")] = None,
    kd_weight: Annotated[float | None, typer.Option(help="Default: the preset's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default 0.")] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    image_cache: Annotated[
        Path | None,
        typer.Option(
            "--image-cache",
            parser=place,
            metavar="FOLDER",
            help="Folder where image features are kept: epochs after the first, and later "
            "trainings with the same folder, run no vision tower.",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other field of DistillConfig, as NAME=VALUE."),
    ] = None,
    split: SplitOption = None,
    images_root: ImagesRootOption = None,
    reports_root: ReportsRootOption = None,
    drop_comparisons: DropComparisonsOption = False,
    read: ReadOption = None,
    max_image_tokens: ImageTokensOption = None,
    template: TemplateOption = None,
    template_date: TemplateDateOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    on_error: OnErrorOption = "fail",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an adapter that --out holds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Distil demonstrations into a steering adapter for a frozen backbone."""
    given = {
        "preset": preset,
        "rank": rank,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "gradient_accumulation": gradient_accumulation,
        "learning_rate": learning_rate,
        "pathology_weight": pathology_weight,
        "eos_weight": eos_weight,
        "polarity": polarity,
        "decisive": decisive,
        "ce_weight": ce_weight,
        "kd_weight": kd_weight,
        "seed": seed,
        "gradient_checkpointing": gradient_checkpointing or None,
        "cache_images": None if image_cache is None else str(image_cache),
    }
    check_values(target=target, on_error=on_error, dtype=dtype, max_image_tokens=max_image_tokens)
    from dive.training.config import DistillConfig, check_teacher

    named = {name: value for name, value in given.items() if value is not None}
    by_set = pairs(setting, [field.name for field in fields(DistillConfig)], "--set")
    for name in by_set:
        if name in named:
            option = "--image-cache" if name == "cache_images" else f"--{name.replace('_', '-')}"
            raise DiveError(f"{name} is given twice, by {option} and by --set; leave one out")
    config = DistillConfig(**{**named, **by_set})
    # what follows takes seconds to import
    from dive.adapter.config import CONFIG_FILE
    from dive.data import Skipped
    from dive.data.overwriting import check_not_of_spec, check_not_read, films
    from dive.files.lock import hold_folder
    from dive.prompting.prompter import DEFAULT_MAX_IMAGE_TOKENS
    from dive.training.distillation import distill as run
    from dive.training.fingerprint import (
        clear_finished,
        describe_wish,
        find_checkpoint,
        remove_checkpoints,
    )

    if demonstrations is not None:
        check_teacher(config)
    budget = image_budget(max_image_tokens, DEFAULT_MAX_IMAGE_TOKENS)
    _check_out(out, config.cache_images)
    written = _files_of(out)
    check_not_read(written, [backbone, template, _annotations(config.decisive)])
    for spec in (studies, validation, demonstrations):
        if spec is not None and (":" in spec or os.path.isfile(spec)):  # and no number
            check_not_of_spec(written, spec, images_root, reports_root)
    context.with_resource(hold_folder(out, ranks=True))  # to the end of the command
    checkpoints = out / "checkpoints"
    left = clear_finished(out) if int(os.environ.get("RANK", 0)) == 0 else False
    if (out / CONFIG_FILE).exists() and not overwrite:
        if left and resume:
            _say_cleared(out, as_json)
            return
        raise DiveError(f"{out}: {_finished(out, resume)}")
    # another training is refused before the studies are read, as far as it can be told by then
    find_checkpoint(checkpoints, resume, describe_wish(config, target, prompt, budget))
    skipped = Skipped()
    options = reading(split, images_root, reports_root, drop_comparisons, read)
    options |= {"target": target, "on_error": on_error, "skipped": skipped}
    train = open_all(studies, **options)
    shown = demonstrations_of(demonstrations, target)
    held_out: Any = None
    if validation is not None:
        held_out = number_or_file(validation, "--validation")
        if isinstance(held_out, str):
            # the same dataset's other split, or a file of its own
            held_out = open_all(
                held_out, **options | {"split": "validation" if ":" in held_out else None}
            )
    for read_now in (train, shown, held_out):
        check_not_read(written, films(read_now) if isinstance(read_now, list) else [])
    adapter = run(
        open_backbone(backbone, dtype, device),
        train,
        shown,
        config,
        validation=held_out,
        prompt=prompt,
        target=target,
        max_image_tokens=budget,
        template=template,
        template_date=template_date,
        output_dir=checkpoints,
        resume=resume,
        progress=True,
        on_error=on_error,
        skipped=skipped,
    )
    if int(os.environ.get("RANK", 0)) > 0:
        return  # under torchrun every rank has the same adapter, and the first one writes it
    # the adapter comes last, and what it can be made of again goes only when it is there
    try:
        note = write_skipped(skipped, out / "skipped.jsonl")
        adapter.write_held(out)
    except DiveError as error:
        raise DiveError(
            f"{error}; the training is finished and kept in {checkpoints}: the same command with "
            "--resume goes on from there"
        ) from error
    remove_checkpoints(checkpoints)
    facts = adapter.metadata["distillation"]
    if as_json:
        answer = {"adapter": str(out), "parameters": adapter.num_parameters()}
        answer |= {name: facts[name] for name in ("studies", "steps", "seconds")}
        print(visible_json(answer | {"skipped": len(skipped)}))
        return
    console = to_stderr()
    size = sum(p.stat().st_size for p in out.glob("adapter*")) / 1e6
    console.print(
        f"{counted(facts['steps'], 'step')} on {counted(facts['studies'], 'study')} in "
        f"{facts['seconds']:.0f} s: {adapter.num_parameters():,} parameters, {size:.1f} MB in {out}"
    )
    if note:
        console.print(note)
    console.print(
        f"next: dive generate --backbone {backbone} --adapter {out} --studies test.jsonl "
        "--out reports.jsonl"
    )


def _say_cleared(out: Path, as_json: bool) -> None:
    """Of a training that was ended when nothing was left to do but to remove its checkpoints."""
    from dive.adapter.adapter import SteeringAdapter

    adapter = SteeringAdapter.from_pretrained(out)
    if as_json:
        facts = adapter.metadata.get("distillation") or {}
        answer = {"adapter": str(out), "parameters": adapter.num_parameters()}
        answer |= {name: facts.get(name) for name in ("studies", "steps", "seconds")}
        skipped = out / "skipped.jsonl"
        rows = skipped.read_bytes().count(b"\n") if skipped.is_file() else 0
        print(visible_json(answer | {"skipped": rows}))
        return
    to_stderr().print(
        f"the training in {out} had come to its end: its adapter is there, and its checkpoints are "
        "removed now"
    )


def _check_out(out: Path, cache: Any) -> None:
    """What cannot be written is refused before the backbone or any study is read."""
    from dive.data.skipping import check_skipped
    from dive.files.atomic import check_file, check_folder
    from dive.training.feature_store import check_cache

    check_folder(out)
    check_folder(out / "checkpoints")
    for name in _files_of(out):
        check_file(name)
    check_skipped(out / "skipped.jsonl")
    if isinstance(cache, str):
        check_cache(cache)


def _files_of(out: Path) -> dict[Path, str]:
    """What is written into --out, or removed there."""
    from dive.adapter.config import CONFIG_FILE, WEIGHTS_FILE

    return {out / name: "--out, whose" for name in (CONFIG_FILE, WEIGHTS_FILE, "skipped.jsonl")}


def _annotations(decisive: str) -> str | None:
    """The file or folder that --decisive names, if it names one."""
    return str(decisive).partition(":")[2] or None


def _finished(out: Path, resume: bool) -> str:
    """What to do about a folder that holds an adapter already."""
    from dive.training.checkpoints import checkpoints_in

    if not resume:
        return "holds an adapter already; give --overwrite to replace it, or another --out"
    if checkpoints_in(out / "checkpoints"):
        return (
            "holds an adapter, and an unfinished training that is to replace it; to go on with "
            "that one, give --overwrite too"
        )
    return (
        "the training there is finished, and there is nothing to resume; write reports with it "
        f"(dive generate --adapter {out}), or train anew: into another --out, or over this one "
        "with --overwrite"
    )
