"""`dive report`: one page from references and the predictions of several methods."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dive.cli.evaluate_files import hold_outputs, outputs_of
from dive.cli.options import (
    ComparedOption,
    DeviceOption,
    DropComparisonsOption,
    DtypeOption,
    ImagesRootOption,
    ImageTokensOption,
    MeteorSynonymsOption,
    PromptOption,
    RadgraphAnnotationsOption,
    ReadOption,
    ReferencesOption,
    ReportsRootOption,
    SplitOption,
    as_path,
    check_values,
    image_budget,
    open_backbone,
    reading,
)
from dive.cli.report_inputs import Inside, named, read_all, training_of_logs
from dive.cli.scoring import metrics_of
from dive.errors import DiveError
from dive.errors.console import to_stderr
from dive.errors.counting import counted

if TYPE_CHECKING:
    from dive.page.schema import PageData


def report(
    context: typer.Context,
    references: ReferencesOption,
    predictions: Annotated[
        list[str],
        typer.Option(
            "--predictions",
            metavar="[NAME=]FILE",
            help="reports.jsonl of dive generate; once per method. NAME: of the method.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", parser=as_path, metavar="FILE", help="The page.")
    ] = Path("report.html"),
    target: ComparedOption = "findings",
    title: Annotated[str, typer.Option("--title", help="Head of the page.")] = (
        "Reports beside their references"
    ),
    metrics: Annotated[
        str, typer.Option("--metrics", help="Comma-separated, as in dive evaluate.")
    ] = "bleu,rougeL,findings",
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="NAME", help="Compared with; default the first."),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", help="Resamples for the intervals; 0: none.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    meteor_synonyms: MeteorSynonymsOption = True,
    radgraph_annotations: RadgraphAnnotationsOption = None,
    images: Annotated[
        str,
        typer.Option(
            "--images", help="embed them in the page, beside it in a folder of its name, or none."
        ),
    ] = "embed",
    image_size: Annotated[
        int, typer.Option("--image-size", help="Pixels of a film's longer edge, at the most.")
    ] = 512,
    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            metavar="[NAME=]PATH",
            help="log.jsonl of a training, or its folder; repeatable. That of --adapter is shown "
            "without it.",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="With --adapter: shows what is inside the adapter."),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter", parser=as_path, metavar="FOLDER", help="The adapter of --explain-method."
        ),
    ] = None,
    explain: Annotated[
        int, typer.Option("--explain", help="Studies whose inside is shown, the worst first.")
    ] = 20,
    explain_method: Annotated[
        str | None,
        typer.Option(
            "--explain-method", metavar="NAME", help="Whose reports; default the last method."
        ),
    ] = None,
    prompt: PromptOption = None,
    max_image_tokens: ImageTokensOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    split: SplitOption = None,
    images_root: ImagesRootOption = None,
    reports_root: ReportsRootOption = None,
    drop_comparisons: DropComparisonsOption = False,
    read: ReadOption = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Methods may lack studies, and have others: said on the page, and not scored.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", parser=as_path, metavar="FILE", help="Write all that the page shows here."
        ),
    ] = None,
) -> None:
    """Write a page: references beside the reports of each method, scores, training, the inside."""
    check_values(target=target, dtype=dtype, max_image_tokens=max_image_tokens)
    if (backbone is None) != (adapter is None):
        raise DiveError("--backbone and --adapter go together: give both or neither")
    if explain_method is not None and backbone is None:
        raise DiveError("--explain-method has no use without --backbone and --adapter")
    for name, value in (("--bootstrap", bootstrap), ("--explain", explain)):
        if value < 0:
            raise DiveError(f"{name} is {value}, want a whole number >= 0")
    from dive.data.overwriting import check_not_read
    from dive.data.overwriting import films as films_of
    from dive.page import FilmOptions, build_page, write_json, write_page

    requested = metrics_of(metrics)
    beside = films_folder(out) if images == "beside" else None
    films = FilmOptions(images, image_size, folder=beside)
    files = named(predictions, "--predictions")
    logs = named(log or [], "--log")
    written = outputs_of([("--out", out), ("--json", json_file)])
    hold_outputs(
        context,
        written,
        [*files.values(), *logs.values(), adapter, radgraph_annotations],
        (references, images_root, reports_root),
    )
    training, notes = training_of_logs(logs, adapter)
    options = reading(split, images_root, reports_root, drop_comparisons, read)
    studies, methods, left_out = read_all(references, target, options, files, allow_missing)
    check_not_read(written, films_of(studies))
    inside = None
    if backbone is not None and adapter is not None and explain:
        inside = Inside(
            lambda: open_backbone(backbone, dtype, device),
            adapter,
            methods,
            explain_method,
            prompt=prompt,
            target=target,
            max_image_tokens=image_budget(max_image_tokens, "auto"),
        )
    data = build_page(
        studies,
        methods,
        target=target,
        title=title,
        metrics=requested,
        baseline=baseline,
        bootstrap=bootstrap or None,
        images=films,
        training=training,
        notes=[*left_out, *notes],
        seed=seed,
        meteor_synonyms=meteor_synonyms,
        radgraph=radgraph_annotations,
    )
    if inside is not None:
        inside.add(data, studies, explain)
    write_page(out, data)
    if json_file is not None:
        write_json(json_file, data)
    _print_summary(out, data)
    if beside is None and (earlier := films_folder(out)).is_dir():
        to_stderr().print(f"{earlier} has films of an earlier page, which this one does not show")


def films_folder(page: Path) -> Path:
    """The folder of the films beside a page."""
    return page.with_name(f"{page.stem}-films")


def _print_summary(out: Path, data: "PageData") -> None:
    console = to_stderr()
    for note in data["notes"]:
        console.print(note, style="yellow")
    size = out.stat().st_size / 1e6
    console.print(
        f"{counted(len(data['studies']), 'study')}, {counted(len(data['methods']), 'method')}: "
        f"{out}, {size:.1f} MB; open it in a browser"
    )
