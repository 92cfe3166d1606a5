"""`dive bench`: the speed of operators and decoding here, against PyTorch and transformers."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from dive.bench.request import check
from dive.cli.options import as_path, quiet_libraries
from dive.errors import DiveError
from dive.errors.console import PlainConsole, styled
from dive.files.atomic import check_file, write_text
from dive.files.lock import hold_file

_STDOUT = Path("-")


def bench(
    context: typer.Context,
    operators: Annotated[
        list[str] | None,
        typer.Argument(help="cross-entropy, steer, decode; all three where none is named."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", parser=as_path, metavar="FILE", help="Write the result there; - for stdout."
        ),
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
        float, typer.Option("--seconds", help="Of the whole run; cases that do not fit are named.")
    ] = 60.0,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="On a CPU. Default: torch's, less the cores that are busy."),
    ] = None,
    toy: Annotated[
        bool, typer.Option("--toy", help="Small sizes: shows that it works, not how fast.")
    ] = False,
) -> None:
    """Time the operators and decoding against PyTorch and transformers, on this machine.

    Exit code 1 where an operator computes something wrong, or nothing could be measured (for which
    --json makes no folder).
    """
    started = time.monotonic()
    there = json_file is not None and json_file.parent.is_dir()  # a lock creates it temporarily
    if json_file is not None and json_file != _STDOUT:
        check_file(json_file)
        context.with_resource(hold_file(json_file))
    check(operators or (), device, dtype, seconds, threads)  # before torch is imported
    from dive.bench import run

    quiet_libraries()
    console = PlainConsole(stderr=True)
    with console.status("") as status:
        results = run(
            operators or (),
            device=device,
            dtype=dtype,
            seconds=seconds,
            threads=threads,
            toy=toy,
            started=started,
            say=lambda text: status.update(styled(text)),
        )
    text = json.dumps(results.as_json(), indent=1, allow_nan=False)
    if json_file == _STDOUT:
        print(text)
    else:
        from dive.bench.table import show

        show(results)
        if json_file is not None and (results.records or results.wrong or there):
            write_text(json_file, text + "\n")
    if results.wrong:
        one = results.wrong[0]
        raise DiveError(f"bench: {one.operator} is wrong here ({one.case}): {one.reason}")
    if not results.records:
        lost = json_file not in (None, _STDOUT) and not json_file.is_file()
        more = f"; {json_file} is not written, there is no such folder" if lost else ""
        raise DiveError(f"bench: nothing was measured in {seconds:g} seconds{more}")
