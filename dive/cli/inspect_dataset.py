"""`dive inspect dataset`: read a dataset, print what was kept and why, write it as JSON lines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dive.cli.options import DropComparisonsOption, check_values
from dive.errors import checks
from dive.errors.visible import visible

if TYPE_CHECKING:
    from dive.data import Study

_SHOWN = 10  # reasons that are printed at most


def dataset(
    context: typer.Context,
    spec: Annotated[
        str,
        typer.Argument(help="mimic-cxr:ROOT, chexpert-plus:ROOT, iu-xray:ROOT, r2gen:FILE ..."),
    ],
    target: Annotated[
        str, typer.Option("--target", help="Required sections: findings, impression or both.")
    ] = "findings",
    split: Annotated[str | None, typer.Option("--split")] = None,
    views: Annotated[
        str | None, typer.Option("--views", help="frontal, lateral, all, or names: PA,AP.")
    ] = None,
    max_images: Annotated[int | None, typer.Option("--max-images")] = None,
    min_words: Annotated[int, typer.Option("--min-words")] = 0,
    images: Annotated[
        str | None,
        typer.Option("--images", metavar="FOLDER", help="Folder of images, if not under ROOT."),
    ] = None,
    reports: Annotated[
        str | None,
        typer.Option(
            "--reports", metavar="PATH", help="Folder or zip of reports, if not under ROOT."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    drop_comparisons: DropComparisonsOption = False,
    strip_placeholders: Annotated[bool, typer.Option("--strip-placeholders")] = False,
    no_check_files: Annotated[bool, typer.Option("--no-check-files")] = False,
    on_error: Annotated[str, typer.Option("--on-error", help="fail or skip.")] = "fail",
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="Write the studies here, as JSON lines."),
    ] = None,
) -> None:
    """Read a dataset, print what was kept and why, and write it as JSON lines.

    Shows a download before a long run, and converts it for programs that read JSON lines.
    """
    from dive.data.open import open_studies
    from dive.data.overwriting import check_not_of_spec, check_not_read, films
    from dive.data.skipping import Skipped
    from dive.files.atomic import check_file
    from dive.files.json_lines import write_jsonl
    from dive.files.lock import hold_file

    check_values(target=target, on_error=on_error)
    file = None if out is None else checks.path("--out", out)
    if file is not None:
        check_file(file)  # before anything is read
        check_not_of_spec({file: "--out"}, spec, images, reports)
        context.with_resource(hold_file(file))
    skipped = Skipped()
    studies = open_studies(
        spec,
        target=target,
        split=split,
        views=views,
        max_images=max_images,
        min_words=min_words,
        images=images,
        reports=reports,
        seed=seed,
        drop_comparisons=drop_comparisons,
        strip_placeholders=strip_placeholders,
        check_files=not no_check_files,
        on_error=on_error,
        skipped=skipped,
    ).read()
    if file is not None:
        check_not_read({file: "--out"}, films(studies))
        write_jsonl(file, map(_record, studies))
    print(visible(studies.summary))
    for entry in skipped.entries[:_SHOWN]:
        print(visible(f"  skipped: {entry['reason']}"))
    if len(skipped) > _SHOWN:
        print(f"  skipped: and {len(skipped) - _SHOWN:,} more")
    if file is not None:
        note = "it has reports, and is subject to the agreement of its source"
        print(visible(f"  wrote {file}: {note}"))


def _record(study: "Study") -> dict[str, Any]:
    # absolute paths, because relative ones in JSON lines are relative to the file
    record = {
        "id": study.id,
        "images": [str(Path(str(image)).absolute()) for image in study.images],
    }
    fields = ("patient", "origin", "split", "indication", "findings", "impression")
    return record | {
        name: getattr(study, name) for name in fields if getattr(study, name) is not None
    }
