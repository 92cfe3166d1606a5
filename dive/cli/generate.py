"""`dive generate`: images or studies in, reports.jsonl out."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dive.checks import whole
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
    check_values,
    demonstrations_of,
    image_budget,
    open_all,
    open_backbone,
    place,
    reading,
    write_skipped,
)
from dive.counting import counted
from dive.errors import DiveError

if TYPE_CHECKING:
    from dive.batches import Report


def generate(
    backbone: BackboneOption,
    out: Annotated[
        Path,
        typer.Option("--out", parser=place, metavar="FILE", help="JSON lines, one report a line."),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=place,
            metavar="[IMAGES]...",
            help="Image files, one report each.",
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
            parser=place,
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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the reports that --out holds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a report for every study or image. An interrupted run goes on where it stopped.

    A study whose logits are not finite gets no report: the command ends with status 1, says which,
    and tries just these when it is given again; with --on-error skip it leaves them out.
    """
    if bool(images) == (studies is not None):
        raise DiveError("give either --studies FILE or image files, and not both")
    from dive.data.io import check_file

    check_values(
        target=target,
        on_error=on_error,
        dtype=dtype,
        engine=engine,
        max_image_tokens=max_image_tokens,
    )
    for option, value in (("--max-new-tokens", max_new_tokens), ("--batch-size", batch_size)):
        whole(option, value, 1)
    check_file(out)  # what cannot be written is refused before anything is read
    for name in (out.with_name(out.name + ".partial"), out.with_suffix(".skipped.jsonl")):
        check_file(name)
    if out.is_file() and not overwrite:
        raise DiveError(
            f"{out}: is there already; give --overwrite to replace it, or another --out"
        )
    from dive.adapter import SteeringAdapter
    from dive.data import Skipped
    from dive.data.io import JsonlWriter, run_before
    from dive.generation import as_studies, iter_reports
    from dive.template_clock import AssumedDay, as_date, today

    skipped = Skipped()
    if studies is not None:
        options = reading(split, images_root, reports_root, False, read)
        # what is written need not have been written before: no section is asked for
        items = open_all(studies, target=None, on_error=on_error, skipped=skipped, **options)
    else:
        items = as_studies(images or [])
        _refuse_twice([item.id for item in items])
    steering = SteeringAdapter.from_pretrained(adapter) if adapter is not None else None
    section = target or (steering.metadata.get("target") if steering else None) or "findings"
    shown: Any = demonstrations_of(str(demonstrations), section) if demonstrations else None
    template_date = None if template_date is None else as_date(template_date)
    stored = {} if steering is None else steering.metadata
    if template_date is None and not stored.get("template_date"):
        # what an interrupted run has begun is prompted alike to its end, on another day, too
        template_date = AssumedDay(run_before(out).get("template_date") or today())
    run = {
        "backbone": backbone,
        "adapter": _digest_of(steering),
        "studies": _digest(
            [(item.id, [str(image) for image in item.images], item.indication) for item in items]
        ),
        "demonstrations": None if demonstrations is None else _digest(_bytes(demonstrations)),
        "target": target,
        "prompt": prompt,
        "template": None if template is None else _digest(_bytes(template)),
        "template_date": template_date,
        "max_new_tokens": max_new_tokens,
        "max_image_tokens": max_image_tokens,
        "dtype": dtype,
    }
    ended = 0
    failed: list[Report] = []
    with JsonlWriter(out, run=run) as writer:
        earlier = len(writer.done)
        left = [item for item in items if item.id not in writer.done]
        if earlier:
            there = f"{earlier} of {counted(len(items), 'report')}"
            Console(stderr=True).print(f"going on: {there} written before")
        if left:
            reports = iter_reports(
                open_backbone(backbone, dtype, device),
                left,
                prompt,
                steering,
                shown,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                target=target,
                max_image_tokens=image_budget(max_image_tokens, "auto"),
                template=template,
                template_date=template_date,
                engine=engine,
                on_error=on_error,
                skipped=skipped,
            )
            sources = {item.id: item.source for item in left}
            for report in reports:
                if report.error is not None:
                    failed.append(report)
                    if on_error == "skip":
                        skipped.add(report.id, sources[report.id], DiveError(report.error))
                    continue
                ended += report.finish_reason == "eos"
                writer.append(
                    {
                        "id": report.id,
                        "images": report.images,
                        "report": report.text,
                        "finish_reason": report.finish_reason,
                        "num_tokens": report.num_tokens,
                        "seconds": round(report.seconds, 4),
                        "engine": report.engine,
                    }
                )
        written = len(writer.done)
        if failed and on_error == "fail":
            raise DiveError(_without_report(failed, written, out))
        if not written:
            write_skipped(skipped, out.with_suffix(".skipped.jsonl"))
            raise DiveError(f"no report was written: {counted(len(skipped), 'study')} skipped")
        writer.finish()
    note = write_skipped(skipped, out.with_suffix(".skipped.jsonl"))
    if as_json:
        print(json.dumps({"reports": written, "skipped": len(skipped), "out": str(out)}))
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    new = written - earlier
    console.print(
        f"{counted(written, 'report')} in {out}; of {counted(new, 'new one')} the model ended "
        f"{ended} by itself"
    )
    if note:
        console.print(note)
    if studies is not None:  # of bare images there is no reference
        more = "" if section == "findings" else f" --target {section}"
        more += " --allow-missing" if len(skipped) else ""
        console.print(f"next: dive evaluate --predictions {out} --references {studies}{more}")


def _without_report(failed: list["Report"], written: int, out: Path) -> str:
    """What to say, in one line, of studies whose logits were not finite."""
    names = [report.id for report in failed]
    few = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"{counted(len(names), 'study')} got no report: {few}: {failed[0].error}; "
        f"{counted(written, 'report')} kept: the same command tries again what is missing, with "
        "--on-error skip it finishes without; where float16 overflows, another --dtype (and --out) "
        "may help"
    )


def _refuse_twice(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DiveError(f"the image {twice[0]} is given twice")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DiveError(f"cannot read {path}: {error.strerror}") from error


def _digest(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode("utf-8")
    return hashlib.sha256(data).hexdigest()[:16]


def _digest_of(adapter: Any) -> str | None:
    if adapter is None:
        return None
    parts = [tensor.numpy().tobytes() for tensor in adapter.state_dict().values()]
    return _digest(b"".join(parts))
