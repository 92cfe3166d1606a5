"""`dive demo` and `dive study`: the embedded world."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dive.errors import DiveError


def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for page, table, reports, adapter.")
    ] = (Path("dive-demo")),
    hospital: Annotated[int | None, typer.Option(help="Another invented hospital.")] = None,
    test: Annotated[int, typer.Option(help="Test studies; more take longer.")] = 64,
    steps: Annotated[int, typer.Option(help="Training steps a method.")] = 100,
) -> None:
    """Distil and compare seven methods on a small built-in world, in minutes."""
    from dive.cli.options import quiet_libraries
    from dive.demo import run

    quiet_libraries()
    seed = run.HOSPITAL if hospital is None else hospital
    for name, value, least in (("--hospital", seed, 0), ("--test", test, 1), ("--steps", steps, 1)):
        if value < least:
            raise DiveError(f"{name} is {value}, want a whole number >= {least}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiveError(f"cannot write into {out}: {error.strerror}") from error
    run.main(out, seed=seed, test=test, steps=steps, console=Console())


def study(
    out: Annotated[
        Path | None, typer.Option("--out", help="Results file; default in the tree.")
    ] = (None),
    development: Annotated[bool, typer.Option(help="The two development hospitals.")] = False,
    table: Annotated[bool, typer.Option(help="Print the table of the results, run nothing.")] = (
        False
    ),
) -> None:
    """The study behind the README's table: four unseen hospitals, two seeds; about an hour."""
    from dive.cli.options import quiet_libraries
    from dive.demo import study as module

    quiet_libraries()
    arguments = [*(["--development"] if development else []), *(["--table"] if table else [])]
    module.main([*arguments, *(["--out", str(out)] if out is not None else [])])
