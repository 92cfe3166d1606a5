"""`dive distill`: studies in, an adapter folder out."""

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    as_path,
    check_values,
    demonstrations_of,
    image_budget,
    number_or_file,
    open_all,
    open_backbone,
    pairs,
    reading,
    write_skipped,
)
from dive.errors import DiveError
from dive.errors.console import to_stderr
from dive.errors.counting import counted
from dive.errors.visible import visible_json

if TYPE_CHECKING:
    from dive.adapter import SteeringAdapter
    from dive.data import Skipped, Study
    from dive.training import DistillConfig


def distill(
    context: typer.Context,
    backbone: BackboneOption,
    studies: StudiesOption,
    out: Annotated[
        Path, typer.Option("--out", parser=as_path, metavar="FOLDER", help="For the adapter.")
    ],
    validation: Annotated[
        str | None,
        typer.Option("--validation", help="A file of studies, or the share of --studies."),
    ] = None,
    demonstrations: Annotated[
        str | None,
        typer.Option(
            "--demonstrations",
            help="Studies that the teacher is shown: how many to draw from --studies, or a file. "
            "Default 4 where a teacher is run.",
        ),
    ] = None,
    target: TargetOption = "findings",
    prompt: PromptOption = None,
    preset: Annotated[
        str | None, typer.Option(help="dive (default), dive-ce, live or fixed-ce.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Default: the preset's.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Default 4.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps; takes precedence over --epochs.")
    ] = None,
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
            help="What finds the pathology: lexicon (default), radgraph, or radgraph:X with a type "
            "of model, a folder of weights, or a file of annotations. visual: no list, but how "
            "much the image changes what the teacher expects at each token.",
        ),
    ] = None,
    decisive_unit: Annotated[
        str | None,
        typer.Option(
            "--decisive-unit",
            help="What is weighted of a statement: mention (default), clause, or decision (the "
            "token at which the training reports part present and absent).",
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
            parser=as_path,
            metavar="FOLDER",
            help="Folder for image features: epochs after the first, and later trainings with the "
            "same folder, run no vision tower.",
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
    check_values(target=target, on_error=on_error, dtype=dtype, max_image_tokens=max_image_tokens)
    config = _config(context.params, setting)
    # what follows takes seconds to import
    from dive.data import Skipped
    from dive.files.lock import hold_folder
    from dive.prompting.prompter import DEFAULT_MAX_IMAGE_TOKENS
    from dive.training.config import check_teacher
    from dive.training.distillation import distill as distill_studies
    from dive.training.fingerprint import settings_fingerprint
    from dive.training.ranks import rank as rank_of_process
    from dive.training.resume import find_checkpoint

    if demonstrations is not None:
        check_teacher(config)
    budget = image_budget(max_image_tokens, DEFAULT_MAX_IMAGE_TOKENS)
    _check_out(out, config)
    paths = [backbone, template, _annotations(config.decisive)]
    specs = [studies, validation, demonstrations]
    _check_not_input(out, paths, specs, images_root, reports_root)
    context.with_resource(hold_folder(out, ranks=True))  # to the end of the command
    if _finished_before(out, resume, overwrite, as_json):
        return
    checkpoints = out / "checkpoints"
    # another training is refused before the studies are read, where the settings show it
    find_checkpoint(checkpoints, resume, settings_fingerprint(config, target, prompt, budget))
    skipped = Skipped()
    options = reading(split, images_root, reports_root, drop_comparisons, read)
    options |= {"target": target, "on_error": on_error, "skipped": skipped}
    train, held_out, shown = _read_studies(out, studies, validation, demonstrations, options)
    adapter = distill_studies(
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
    if rank_of_process() == 0:  # under torchrun every rank has the same adapter
        note = _save(adapter, skipped, out)
        _print_result(adapter, out, len(skipped), note, backbone, as_json)


def _config(params: dict[str, Any], setting: list[str] | None) -> "DistillConfig":
    """The settings, from the options that are called as fields of `DistillConfig`, and --set."""
    from dive.training.config import DistillConfig

    names = [field.name for field in fields(DistillConfig)]
    given = params | {"cache_images": params["image_cache"] and str(params["image_cache"])}
    by_option = {
        name: given[name]
        for name in names
        if given.get(name) is not None and given[name] is not False  # a flag that is not given
    }
    by_set = pairs(setting, names, "--set")
    for name in by_set:
        if name in by_option:
            option = "--image-cache" if name == "cache_images" else f"--{name.replace('_', '-')}"
            raise DiveError(f"{name} is given twice, by {option} and by --set; leave one out")
    return DistillConfig(**{**by_option, **by_set})


def _check_not_input(
    out: Path,
    paths: list[Any],
    specs: list[str | None],
    images_root: Path | None,
    reports_root: Path | None,
) -> None:
    """DiveError where a file of the output is one of the inputs."""
    from dive.data.overwriting import check_not_of_spec, check_not_read

    written = _files_of(out)
    check_not_read(written, paths)
    for spec in specs:
        if spec is not None and (":" in spec or os.path.isfile(spec)):  # and no number
            check_not_of_spec(written, spec, images_root, reports_root)


def _finished_before(out: Path, resume: bool, overwrite: bool, as_json: bool) -> bool:
    """Whether the training to resume is finished, but for the removal of its checkpoints.

    Raises:
        DiveError: `out` holds an adapter that is not to be replaced.
    """
    from dive.adapter.config import CONFIG_FILE
    from dive.training.finished import clear_finished
    from dive.training.ranks import rank

    cleared = clear_finished(out) if rank() == 0 else False
    if not (out / CONFIG_FILE).exists() or overwrite:
        return False
    if cleared and resume:
        _print_cleared(out, as_json)
        return True
    raise DiveError(f"{out}: {_finished(out, resume)}")


def _read_studies(
    out: Path,
    studies: str,
    validation: str | None,
    demonstrations: str | None,
    options: dict[str, Any],
) -> tuple[list["Study"], Any, Any]:
    """The studies to learn from, for validation (or a share) and to show (or a number).

    Raises:
        DiveError: a study cannot be read, or one of its images would be overwritten.
    """
    from dive.data.overwriting import check_not_read, films

    train = open_all(studies, **options)
    shown = demonstrations_of(demonstrations, options["target"])
    held_out: Any = None
    if validation is not None:
        held_out = number_or_file(validation, "--validation")
        if isinstance(held_out, str):
            # the same dataset's other split, or a file of its own
            held_out = open_all(
                held_out, **options | {"split": "validation" if ":" in held_out else None}
            )
    for found in (train, shown, held_out):
        check_not_read(_files_of(out), films(found) if isinstance(found, list) else [])
    return train, held_out, shown


def _save(adapter: "SteeringAdapter", skipped: "Skipped", out: Path) -> str:
    """Write the adapter, and then remove the checkpoints of its training. Returns a line about the
    skipped studies."""
    from dive.training.finished import remove_checkpoints

    checkpoints = out / "checkpoints"
    try:
        note = write_skipped(skipped, out / "skipped.jsonl")
        adapter.write_held(out)
    except DiveError as error:
        raise DiveError(
            f"{error}; the training is finished and kept in {checkpoints}: the same command with "
            "--resume goes on from there"
        ) from error
    remove_checkpoints(checkpoints)
    return note


def _print_result(
    adapter: "SteeringAdapter", out: Path, skipped: int, note: str, backbone: str, as_json: bool
) -> None:
    if as_json:
        _print_json(adapter, out, skipped)
        return
    facts = adapter.metadata["distillation"]
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


def _print_json(adapter: "SteeringAdapter", out: Path, skipped: int) -> None:
    facts = adapter.metadata.get("distillation") or {}
    answer = {"adapter": str(out), "parameters": adapter.num_parameters()}
    answer |= {name: facts.get(name) for name in ("studies", "steps", "seconds")}
    print(visible_json(answer | {"skipped": skipped}))


def _print_cleared(out: Path, as_json: bool) -> None:
    """Print that a finished training's checkpoints were removed, which was left to do."""
    from dive.adapter.adapter import SteeringAdapter

    if as_json:
        skipped = out / "skipped.jsonl"
        count = skipped.read_bytes().count(b"\n") if skipped.is_file() else 0
        _print_json(SteeringAdapter.from_pretrained(out), out, count)
        return
    to_stderr().print(
        f"the training in {out} had come to its end: its adapter is there, and its checkpoints are "
        "removed now"
    )


def _check_out(out: Path, config: "DistillConfig") -> None:
    """DiveError where an output cannot be written, before the backbone or a study is read."""
    from dive.data.skipping import check_skipped
    from dive.files.atomic import check_file, check_folder
    from dive.training.feature_store import check_cache

    check_folder(out)
    check_folder(out / "checkpoints")
    for name in _files_of(out):
        check_file(name)
    check_skipped(out / "skipped.jsonl")
    if isinstance(config.cache_images, str):
        check_cache(config.cache_images)


def _files_of(out: Path) -> dict[Path, str]:
    """The files that are written into --out, or removed there."""
    from dive.adapter.config import CONFIG_FILE, WEIGHTS_FILE

    return {out / name: "--out, whose" for name in (CONFIG_FILE, WEIGHTS_FILE, "skipped.jsonl")}


def _annotations(decisive: str) -> str | None:
    """The file or folder that --decisive names, if it names one."""
    return str(decisive).partition(":")[2] or None


def _finished(out: Path, resume: bool) -> str:
    """The message about a folder that holds an adapter already."""
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
