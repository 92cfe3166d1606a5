"""`dive bench`: how fast the operators and decoding are here, beside PyTorch and transformers."""

import json
import os
import stat
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dive.errors import DiveError


def bench(
    operators: Annotated[
        list[str] | None,
        typer.Argument(help="cross-entropy, steer, decode; all three where none is named."),
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the result there; - for stdout."),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto (a GPU where there is one), cpu, cuda ...")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", help="auto (bfloat16 on a GPU, else float32), bfloat16, float16, float32."
        ),
    ] = "auto",
    seconds: Annotated[
        float, typer.Option("--seconds", help="Of the whole run; what does not fit is named.")
    ] = 60.0,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", help="On a CPU. Default: torch's, less what the machine's load takes."
        ),
    ] = None,
    toy: Annotated[
        bool, typer.Option("--toy", help="Small sizes: whether it works, not how fast.")
    ] = False,
) -> None:
    """Time the operators and decoding against PyTorch and transformers, on this machine.

    Exit code 1 where an operator computes something wrong, or nothing could be measured.
    """
    started = time.monotonic()
    if json_file is not None and json_file != "-":
        check_file(Path(json_file))
    from dive.bench import run
    from dive.cli.options import quiet_libraries

    quiet_libraries()
    told = Console(stderr=True, highlight=False)
    with told.status("") as status:
        results = run(
            operators or (),
            device=device,
            dtype=dtype,
            seconds=seconds,
            threads=threads,
            toy=toy,
            started=started,
            say=lambda text: status.update(text.replace("[", r"\[")),
        )
    text = json.dumps(results.as_json(), indent=1, allow_nan=False)
    if json_file == "-":
        print(text)
    else:
        from dive.bench.table import show

        show(results)
        if json_file is not None:
            write(Path(json_file), text + "\n")
    if results.wrong:
        one = results.wrong[0]
        raise DiveError(f"bench: {one.operator} is wrong here ({one.case}): {one.reason}")
    if not results.rows:
        raise DiveError(f"bench: nothing was measured in {seconds:g} seconds")


def check_file(path: Path) -> None:
    """DiveError unless a regular file can be written there; looked at before anything is timed."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise DiveError(f"--json {path}: is a link that leads nowhere") from None
        if not path.parent.is_dir():
            raise DiveError(f"--json {path}: {path.parent} is not a folder") from None
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise DiveError(f"--json {path}: {path.parent} cannot be written to") from None
    except (OSError, ValueError) as error:
        raise DiveError(f"--json {path}: {error}") from None
    else:
        if not stat.S_ISREG(mode):
            raise DiveError(f"--json {path}: is no regular file; - writes to stdout")
        if not os.access(path, os.W_OK):
            raise DiveError(f"--json {path}: cannot be written to")


def write(path: Path, text: str) -> None:
    """The file as a whole, or DiveError."""
    check_file(path)  # it may have changed meanwhile
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DiveError(f"--json {path}: {error.strerror}") from error
