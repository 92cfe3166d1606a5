"""`dive generate`: images or studies in, reports.jsonl out."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dive.cli.engines import (
    batch_size_of,
    engine_options_of,
    ray_options,
    read_inputs,
    reports_of,
)
from dive.cli.generate_output import (
    hold_outputs,
    next_command,
    print_summary,
    write_all,
)
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
    image_budget,
    open_all,
    reading,
)
from dive.errors import DiveError
from dive.errors.checks import whole
from dive.errors.visible import visible_json

if TYPE_CHECKING:
    from dive.adapter.adapter import SteeringAdapter
    from dive.data import Study


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
    batch_size: Annotated[
        int | None, typer.Option(help="Studies at once. Default: 8, of vLLM 64.")
    ] = None,
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
            help="auto: dive._C where it can; dive._C: stop where it cannot; transformers; vllm.",
        ),
    ] = "auto",
    engine_option: Annotated[
        list[str] | None,
        typer.Option(
            "--engine-option",
            help="An argument of vLLM's engine, as NAME=VALUE (tensor_parallel_size=2, "
            "gpu_memory_utilization=0.8 ...).",
        ),
    ] = None,
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
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Write by actors of Ray, each with an engine of its own."),
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="Ray's cluster: auto, HOST:PORT, or local for a session of this command's own. "
            "Default: $RAY_ADDRESS, else local.",
        ),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option("--actors", help="Default: by the cluster's GPUs, or one per node."),
    ] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option("--gpus-per-actor", help="Default: 1 where there are GPUs.")
    ] = None,
    cpus_per_actor: Annotated[
        int | None, typer.Option("--cpus-per-actor", help="Cores of each actor. Default: 1.")
    ] = None,
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
    whole("--max-new-tokens", max_new_tokens, 1)
    batch_size = batch_size_of(batch_size, engine)
    engine_options = engine_options_of(engine_option, engine)
    pool = ray_options(ray, address, actors, gpus_per_actor, cpus_per_actor, device)
    inputs = [demonstrations, template, *(images or []), backbone, adapter]
    dataset = (studies, images_root, reports_root)
    outputs, lock = hold_outputs(context, out, overwrite, inputs, dataset)
    from dive.data import Skipped
    from dive.data.overwriting import check_not_read, films
    from dive.files.json_lines import JsonlWriter
    from dive.generation.ray_cluster import connected
    from dive.generation.resume import check_images, watched
    from dive.generation.run_request import RunRequest, fingerprint

    skipped = Skipped()
    if studies is not None:
        options = reading(split, images_root, reports_root, False, read)
        # the studies need no report, so no section of one is required
        items = open_all(studies, target=None, on_error=on_error, skipped=skipped, **options)
    else:
        items = _bare_images(images or [])
    request = RunRequest(
        backbone=backbone,
        adapter=adapter,
        demonstrations=demonstrations,
        prompt=prompt,
        target=target,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        max_image_tokens=image_budget(max_image_tokens, "auto"),
        template=template,
        dtype=dtype,
        device=device,
        engine=engine,
        on_error=on_error,
        verify=verify,
        engine_options=engine_options,
        images=max((len(item.images) for item in items), default=1),
    )
    read_in = read_inputs(request)
    check_not_read(outputs, [*films(items), *films(read_in.shown)])
    request = replace(request, template_date=_template_date(template_date, read_in.adapter, out))
    cluster = context.with_resource(connected(pool, device)) if pool is not None else None
    if cluster is not None:
        request = replace(request, device=cluster.device)
    facts = fingerprint(request, read_in, items)
    watching = {item.id: watched(item) for item in items}
    with JsonlWriter(
        out,
        fingerprint=facts,
        order=watching,
        made_of=lambda name: watching[name].seen,
        overwrite=overwrite,
        lock=lock,
    ) as writer:
        check_images(writer, items, verify)
        reports = reports_of(request, read_in, facts, cluster, skipped)
        end = write_all(writer, reports, watching, skipped, on_error)
    if as_json:
        print(visible_json({"reports": end.written, "skipped": len(skipped), "out": str(out)}))
    else:
        # of bare images there is no reference
        proposal = (
            "" if studies is None else next_command(out, request.section(read_in.adapter), skipped)
        )
        print_summary(out, end, proposal)


def _bare_images(images: list[Path]) -> "list[Study]":
    """One study per image; DiveError where one is given twice."""
    from dive.data.given import as_studies

    items = as_studies(images)
    names = [item.id for item in items]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DiveError(f"the image {twice[0]} is given twice")
    return items


def _template_date(given: str | None, adapter: "SteeringAdapter | None", out: Path) -> Any:
    """The date that a template prints: as given, else of the unfinished run at `out`, else today's;
    None where the adapter's metadata has one."""
    from dive.files.json_lines import fingerprint_before
    from dive.prompting.template_clock import AssumedDay, as_date, today

    if given is not None:
        return as_date(given)
    if adapter is not None and adapter.metadata.get("template_date"):
        return None
    # an interrupted run keeps its date on another day, so that all its prompts agree
    return AssumedDay(_date_in(fingerprint_before(out)) or today())


def _date_in(run: dict[str, Any]) -> str | None:
    """The template date in an unfinished run's fingerprint; None where it has none."""
    from dive.prompting.template_clock import as_date

    try:
        return as_date(run.get("template_date"))
    except DiveError:
        return None  # an edited file, which is refused when the two runs are compared
