"""`dive generate`: images or studies in, reports.jsonl out."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dive.cli.options import (
    BackboneOption,
    DeviceOption,
    DtypeOption,
    ImagesRootOption,
    ImageTokensOption,
    JsonOption,
    OnErrorOption,
    PromptOption,
    ReadOption,
    ReportsRootOption,
    SplitOption,
    TemplateDateOption,
    TemplateOption,
    as_path,
    check_values,
    demonstrations_of,
    image_budget,
    open_all,
    open_backbone,
    reading,
    write_skipped,
)
from dive.errors import DiveError
from dive.errors.checks import whole
from dive.errors.console import to_stderr
from dive.errors.counting import counted
from dive.errors.visible import visible_json

if TYPE_CHECKING:
    from dive.adapter.adapter import SteeringAdapter
    from dive.data import Skipped, Study
    from dive.files.json_lines import JsonlWriter
    from dive.generation.report_writer import Report
    from dive.generation.resume import WatchedStudy


def generate(
    context: typer.Context,
    backbone: BackboneOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", parser=as_path, metavar="FILE", help="JSON lines, one report per line."
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=as_path,
            metavar="[IMAGES]...",
            help="Image files; one report per image.",
            show_default=False,
        ),
    ] = None,
    studies: Annotated[
        str | None,
        typer.Option("--studies", help="JSON lines or a dataset, as in dive distill."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="Folder of dive distill, or a hub id.")
    ] = None,
    demonstrations: Annotated[
        Path | None,
        typer.Option(
            "--demonstrations",
            parser=as_path,
            metavar="FILE",
            help="Studies shown before every query (k-shot).",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="findings, impression or both. Default: the adapter's."),
    ] = None,
    prompt: PromptOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest report.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Studies at once.")] = 8,
    split: SplitOption = None,
    images_root: ImagesRootOption = None,
    reports_root: ReportsRootOption = None,
    read: ReadOption = None,
    max_image_tokens: ImageTokensOption = None,
    template: TemplateOption = None,
    template_date: TemplateDateOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="auto: dive._C where it can; dive._C: stop where it cannot; transformers.",
        ),
    ] = "auto",
    on_error: OnErrorOption = "fail",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="To continue an interrupted run: compare the backbone's files and the films of "
            "finished reports by all their bytes, not by samples and times of change.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the reports that --out holds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a report for every study or image. An interrupted run continues where it stopped.

    A study whose logits are not finite gets no report: the command ends with status 1 and names it,
    and tries it again when it is run again; with --on-error skip it leaves it out.
    """
    if bool(images) == (studies is not None):
        raise DiveError("give either --studies FILE or image files, and not both")
    check_values(
        target=target,
        on_error=on_error,
        dtype=dtype,
        engine=engine,
        max_image_tokens=max_image_tokens,
    )
    for option, value in (("--max-new-tokens", max_new_tokens), ("--batch-size", batch_size)):
        whole(option, value, 1)
    inputs = [demonstrations, template, *(images or []), backbone, adapter]
    dataset = (studies, images_root, reports_root)
    outputs, lock = _hold_outputs(context, out, overwrite, inputs, dataset)
    from dive.adapter.adapter import SteeringAdapter
    from dive.data import Skipped
    from dive.data.overwriting import check_not_read, films
    from dive.files.json_lines import JsonlWriter
    from dive.generation.generate_reports import iter_reports
    from dive.generation.resume import check_images, watched

    skipped = Skipped()
    if studies is not None:
        options = reading(split, images_root, reports_root, False, read)
        # the studies need no report, so no section of one is required
        items = open_all(studies, target=None, on_error=on_error, skipped=skipped, **options)
    else:
        items = _bare_images(images or [])
    steering = SteeringAdapter.from_pretrained(adapter) if adapter is not None else None
    stored = {} if steering is None else steering.metadata
    section = target or stored.get("target") or "findings"
    shown = _shown(demonstrations, section)
    check_not_read(outputs, [*films(items), *films(shown)])
    template_date = _template_date(template_date, stored, out)
    image_tokens = image_budget(max_image_tokens, "auto")
    ended = 0
    failed: list[Report] = []
    watching = {item.id: watched(item) for item in items}
    with JsonlWriter(
        out,
        fingerprint={
            **_inputs_in_use(backbone, verify, steering, items, shown),
            **_prompting_in_use(stored, prompt, target, image_tokens, template, template_date),
            "max_new_tokens": max_new_tokens,
            **_computing_in_use(backbone, dtype, device, verify),
        },
        order=watching,
        made_of=lambda name: watching[name].seen,
        overwrite=overwrite,
        lock=lock,
    ) as writer:
        earlier = len(writer.done)
        check_images(writer, items, verify)
        if left := _still_to_write(writer, watching):
            reports = iter_reports(
                open_backbone(backbone, dtype, device),
                left,
                prompt,
                steering,
                shown,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                target=target,
                max_image_tokens=image_tokens,
                template=template,
                template_date=template_date,
                engine=engine,
                on_error=on_error,
                skipped=skipped,
            )
            noted = skipped if on_error == "skip" else None
            ended, failed = _append_reports(writer, reports, watching, noted)
        note = _finish(writer, out, failed if on_error == "fail" else [], skipped)
    written = len(writer.done)
    if as_json:
        print(visible_json({"reports": written, "skipped": len(skipped), "out": str(out)}))
    else:
        # of bare images there is no reference
        proposal = "" if studies is None else _next_command(out, section, skipped)
        _print_summary(out, written, written - earlier, ended, note, proposal)


def _hold_outputs(
    context: typer.Context,
    out: Path,
    overwrite: bool,
    inputs: list[Any],
    dataset: tuple[str | None, Path | None, Path | None],
) -> tuple[dict[Path, str], Any]:
    """Checks that the outputs can be written, before anything is read, and locks them to the end
    of the command.

    inputs: files that the command reads. dataset: the values of --studies and of its two roots.
    Returns the outputs with their options, and the lock of `out`.
    """
    from dive.data.overwriting import check_not_of_spec, check_not_read
    from dive.data.skipping import check_skipped
    from dive.files.json_lines import check_output
    from dive.files.lock import hold_file

    check_output(out)
    left_out = _skipped_file(out)
    outputs = {out: "--out", left_out: f"--out {out}:"}
    check_not_read(outputs, inputs)
    check_not_of_spec(outputs, *dataset)
    check_skipped(left_out)
    lock = context.with_resource(hold_file(out))
    context.with_resource(hold_file(left_out))
    if out.is_file() and not overwrite:
        raise DiveError(
            f"{out}: is there already; give --overwrite to replace it, or another --out"
        )
    return outputs, lock


def _bare_images(images: list[Path]) -> "list[Study]":
    """One study per image; DiveError where one is given twice."""
    from dive.data.given import as_studies

    items = as_studies(images)
    names = [item.id for item in items]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DiveError(f"the image {twice[0]} is given twice")
    return items


def _shown(demonstrations: Path | None, section: str) -> "list[Study] | None":
    """The studies of --demonstrations."""
    if demonstrations is None:
        return None
    shown = demonstrations_of(str(demonstrations), section)
    if isinstance(shown, int):
        raise DiveError(f"--demonstrations is {str(demonstrations)!r}, want a file of studies")
    return shown


def _template_date(given: str | None, stored: dict[str, Any], out: Path) -> Any:
    """The date that a template prints: as given, else of the unfinished run at `out`, else today's;
    None where the adapter's metadata has one."""
    from dive.files.json_lines import fingerprint_before
    from dive.prompting.template_clock import AssumedDay, as_date, today

    if given is not None:
        return as_date(given)
    if stored.get("template_date"):
        return None
    # an interrupted run keeps its date on another day, so that all its prompts agree
    return AssumedDay(_date_in(fingerprint_before(out)) or today())


def _inputs_in_use(
    backbone: str,
    verify: bool,
    steering: "SteeringAdapter | None",
    items: "list[Study]",
    shown: "list[Study] | None",
) -> dict[str, Any]:
    """The inputs of a run, as digests for its fingerprint."""
    from dive.backbone.files import backbone_file_digests
    from dive.generation.resume import adapter_digests, demonstrations_digest, studies_digest

    return {
        **backbone_file_digests(backbone, verify),
        "adapter": adapter_digests(steering),
        "studies": studies_digest(items),
        "demonstrations": demonstrations_digest(shown),
    }


def _prompting_in_use(
    stored: dict[str, Any],
    prompt: str | None,
    target: str | None,
    image_tokens: Any,
    template: Path | None,
    template_date: Any,
) -> dict[str, Any]:
    """The settings of prompts for a fingerprint, whether given, the adapter's or the defaults."""
    from dive.files import digests
    from dive.generation.generate_reports import prompt_settings
    from dive.prompting.prompter import DEFAULT_PROMPTS

    settings = prompt_settings(stored, prompt, target, image_tokens)
    if settings["prompt"] is None:
        settings["prompt"] = DEFAULT_PROMPTS.get(settings["target"])
    return {
        **settings,
        "template": None if template is None else digests.whole(template),
        "template_date": template_date or stored.get("template_date"),
    }


def _computing_in_use(backbone: str, dtype: str, device: str, verify: bool) -> dict[str, Any]:
    """The part of a run's fingerprint about how its reports are computed."""
    from dive.backbone.files import dtype_in_use
    from dive.generation.resume import device_kind
    from dive.prompting.model_digest import versions

    return {
        "dtype": dtype_in_use(backbone, dtype),
        "device": device_kind(device),
        "verify": verify,
        "versions": versions(),
    }


def _still_to_write(
    writer: "JsonlWriter", studies: "Mapping[str, WatchedStudy]"
) -> "list[WatchedStudy]":
    """The studies without a report; prints how many an earlier run has written."""
    if writer.done:
        there = f"{len(writer.done)} of {counted(len(studies), 'report')}"
        to_stderr().print(f"going on: {there} written before")
    return [study for study in studies.values() if study.id not in writer.done]


def _append_reports(
    writer: "JsonlWriter",
    reports: "Iterable[Report]",
    studies: "Mapping[str, Study]",
    skipped: "Skipped | None",
) -> "tuple[int, list[Report]]":
    """Appends a record per report; returns how many the model ended by itself, and those that ended
    in an error, which are not written but noted in `skipped`. studies: by their ids."""
    ended, failed = 0, []
    for report in reports:
        if report.error is not None:
            failed.append(report)
            if skipped is not None:
                skipped.add(report.id, studies[report.id].source, DiveError(report.error))
            continue
        ended += report.finish_reason == "eos"
        writer.append(
            {
                "id": report.id,
                "images": report.images,
                "report": report.text,
                "finish_reason": report.finish_reason,
                "num_tokens": report.num_tokens,
                "prompt_tokens": report.prompt_tokens,
                "seconds": round(report.seconds, 4),
                "engine": report.engine,
            }
        )
    return ended, failed


def _finish(writer: "JsonlWriter", out: Path, failed: "list[Report]", skipped: "Skipped") -> str:
    """Ends the run of `writer`; returns the line about skipped studies, if any.

    Raises:
        DiveError: some reports have `failed`, or no report was written.
    """
    written = len(writer.done)
    if failed:
        raise DiveError(_without_report(failed, written, out))
    # first: without its list of skipped studies a run is not finished
    note = write_skipped(skipped, _skipped_file(out))
    if not written:
        raise DiveError(f"no report was written: {counted(len(skipped), 'study')} skipped")
    writer.finish()
    return note


def _print_summary(out: Path, written: int, new: int, ended: int, note: str, proposal: str) -> None:
    console = to_stderr()
    console.print(
        f"{counted(written, 'report')} in {out}; of {counted(new, 'new one')} the model ended "
        f"{ended} by itself"
    )
    for line in (note, proposal):
        if line:
            console.print(line)


def _next_command(out: Path, section: str, skipped: "Skipped") -> str:
    """The line that proposes to evaluate the reports; paths of studies are not for a log."""
    more = "" if section == "findings" else f" --target {section}"
    more += " --allow-missing" if len(skipped) else ""
    return f"next: dive evaluate --predictions {out} --references STUDIES{more}"


def _skipped_file(out: Path) -> Path:
    """The file of skipped studies: reports.skipped.jsonl for reports.jsonl, and the whole name with
    ".skipped" for any other, so that no two outputs share one. DiveError where `out` has such a
    name itself."""
    if out.name.endswith((".skipped.jsonl", ".skipped")):
        raise DiveError(
            f"--out {out}: a file of that name lists what another output skips; name another"
        )
    if out.suffix == ".jsonl":
        return out.with_name(f"{out.stem}.skipped.jsonl")
    return out.with_name(f"{out.name}.skipped")


def _date_in(run: dict[str, Any]) -> str | None:
    """The template date in an unfinished run's fingerprint; None where it has none."""
    from dive.prompting.template_clock import as_date

    try:
        return as_date(run.get("template_date"))
    except DiveError:
        return None  # an edited file, which is refused when the two runs are compared


def _without_report(failed: list["Report"], written: int, out: Path) -> str:
    """The error, in one line, about studies whose logits were not finite."""
    names = [report.id for report in failed]
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"{counted(len(names), 'study')} got no report: {listed}: {failed[0].error}; "
        f"{counted(written, 'report')} kept: the same command tries the missing ones again, and "
        "with --on-error skip it finishes without them; where float16 overflows, another --dtype "
        "(and --out) may help"
    )
