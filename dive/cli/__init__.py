"""The command line: `dive demo | distill | generate | evaluate | inspect | study | bench | doctor`.

Exit codes: 0 done, 1 bad input or an operator that is wrong (one line on stderr), 2 wrong usage,
130 interrupted.
"""

import logging
import os
import sys
import warnings

import typer
from rich.console import Console

from dive.cli.bench import bench
from dive.cli.demo import demo, study
from dive.cli.distill import distill
from dive.cli.doctor import doctor
from dive.cli.evaluate import evaluate
from dive.cli.generate import generate
from dive.cli.inspect import inspect
from dive.cli.tables import escape_on_stdout
from dive.errors import DiveError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil in-context demonstrations into a steering adapter for a frozen medical "
    "vision-language model. Research software, not for clinical use.",
)
app.command()(demo)
app.command()(distill)
app.command()(generate)
app.command()(evaluate)
app.add_typer(inspect, name="inspect")
app.command()(study)
app.command()(bench)
app.command()(doctor)


@app.callback()
def common(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Say what is chosen and why."),
) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dive").setLevel(logging.INFO if verbose else logging.WARNING)
    # what is wrong with an image comes as one error of ours, and not as a traceback before it
    for name in ("pydicom", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # the libraries' own bars and advice would bury ours
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    warnings.showwarning = _warn
    escape_on_stdout()
    try:
        app()
    except DiveError as error:
        _say("[bold red]error:[/]", error)
        sys.exit(1)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # typer makes it of a KeyboardInterrupt
            _interrupted()
        raise


_INTERRUPTED = 130


def _interrupted() -> None:
    Console(stderr=True, soft_wrap=True).print(
        "interrupted; dive generate goes on with the same command, dive distill with --resume"
    )
    sys.exit(_INTERRUPTED)


def _warn(message: Warning | str, *_where: object, **_more: object) -> None:
    """A line of our source tells a user of the command line nothing."""
    _say("[bold yellow]warning:[/]", message)


def _say(mark: str, message: object) -> None:
    """Brackets in a message are text, not markup."""
    text = str(message).replace("[", r"\[")
    Console(stderr=True).print(f"{mark} {text}", highlight=False, soft_wrap=True)
