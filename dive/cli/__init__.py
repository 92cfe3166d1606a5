"""The command line: `dive demo | distill | generate | evaluate | report | inspect | bench` ...

Exit codes: 0 done, 1 bad input or an operator that is wrong (one line on stderr), 2 wrong usage,
130 interrupted.
"""

import contextlib
import logging
import os
import sys
import traceback
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from dive.cli.bench import bench
from dive.cli.demo import demo
from dive.cli.distill import distill
from dive.cli.doctor import doctor
from dive.cli.evaluate import evaluate
from dive.cli.export_vllm import export_vllm
from dive.cli.generate import generate
from dive.cli.inspect import inspect
from dive.cli.report import report
from dive.cli.tables import escape_on_stdout
from dive.errors import DiveError
from dive.errors.console import styled, to_stderr
from dive.errors.visible import visible
from dive.files.disk import FULL, reason


class _Commands(TyperGroup):
    """The commands; errors about the command line quote it, so they are made visible, too."""

    def make_context(self, *given: Any, **more: Any) -> Any:
        try:
            return super().make_context(*given, **more)
        except Exception as error:
            _make_visible(error)
            raise

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except Exception as error:
            _make_visible(error)
            raise


def _make_visible(error: Exception) -> None:
    if hasattr(error, "format_message") and isinstance(vars(error).get("message"), str):
        vars(error)["message"] = visible(vars(error)["message"])


class _Plainly(logging.Formatter):
    """Formats log lines for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil in-context demonstrations into a steering adapter for a frozen medical "
    "vision-language model. Research software, not for clinical use.",
)
app.command()(demo)
app.command()(distill)
app.command()(generate)
app.command("export-vllm")(export_vllm)
app.command()(evaluate)
app.command()(report)
app.add_typer(inspect, name="inspect")
app.command()(bench)
app.command()(doctor)


@app.callback()
def common(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what is chosen and why."),
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Plainly("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("dive").setLevel(logging.INFO if verbose else logging.WARNING)
    # a bad image is reported as one DiveError, without a traceback of these before it
    for name in ("pydicom", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # progress bars and advice of the libraries would hide those of DIVE
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def main() -> None:
    warnings.showwarning = _warn
    sys.excepthook = _crash
    escape_on_stdout()
    try:
        try:
            app()
        finally:
            with contextlib.suppress(BrokenPipeError):
                sys.stdout.flush()  # a failed write is reported here, not at exit
    except DiveError as error:
        _say("error:", "bold red", error)
        sys.exit(1)
    except OSError as error:
        if error.errno not in FULL:
            raise
        # such as stdout; a DiveError names the files that DIVE writes
        _say("error:", "bold red", f"cannot write: {reason(error, error.filename or '.')}")
        sys.stdout = None  # or Python would try again
        sys.exit(1)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # typer's exit code for a KeyboardInterrupt
            _interrupted()
        raise


_INTERRUPTED = 130
_GO_ON = {
    "generate": "; the same command goes on where it stopped",
    "distill": "; the same command with --resume goes on where it stopped",
}


def _interrupted() -> None:
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    to_stderr().print("interrupted" + _GO_ON.get(command, ""))
    sys.exit(_INTERRUPTED)


def _warn(message: Warning | str, *_where: object, **_more: object) -> None:
    """Prints a warning without the line of source, which does not help a user of the commands."""
    _say("warning:", "bold yellow", message)


def _say(label: str, style: str, message: object) -> None:
    to_stderr().print(
        styled(label, style).append(" ", "default").append(visible(message), "default")
    )


def _crash(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Prints the traceback of an exception that is no DiveError, which is a bug."""
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))
