"""`dive` called in this process, and the JSON lines that it writes."""

import json
from pathlib import Path

from typer.testing import CliRunner

from dive.cli import app


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
