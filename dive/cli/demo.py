"""`dive demo`: the embedded world."""

from pathlib import Path
from typing import Annotated

import typer

from dive.cli.options import as_path
from dive.errors import DiveError
from dive.errors.console import PlainConsole


def demo(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            parser=as_path,
            metavar="FOLDER",
            help="For page, table, reports, adapter.",
        ),
    ] = (Path("dive-demo")),
    hospital: Annotated[int | None, typer.Option(help="Another invented hospital.")] = None,
    test: Annotated[int, typer.Option(help="Test studies; more take longer.")] = 64,
    steps: Annotated[int, typer.Option(help="Training steps per method.")] = 100,
) -> None:
    """Distil and compare seven methods on a small built-in world, in minutes."""
    from dive.cli.options import quiet_libraries
    from dive.demo import run
    from dive.files.atomic import check_file, check_folder

    quiet_libraries()
    seed = run.HOSPITAL if hospital is None else hospital
    for name, value, least in (("--hospital", seed, 0), ("--test", test, 1), ("--steps", steps, 1)):
        if value < least:
            raise DiveError(f"{name} is {value}, want a whole number >= {least}")
    check_folder(out)
    for folder in ("adapter", "images", "predictions"):
        check_folder(out / folder)
    for file in ("index.html", "results.json", "reports.jsonl", "test.jsonl"):
        check_file(out / file)
    run.main(out, seed=seed, test=test, steps=steps, console=PlainConsole())
