"""`dive doctor`: the packages that are installed, and the fast paths that are used."""

import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from dive.cli.options import JsonOption
from dive.cli.tables import add_row, stdout, table
from dive.errors.console import styled
from dive.errors.visible import visible_json

if TYPE_CHECKING:
    from dive.cli.self_test import Finding

_PACKAGES = (
    "torch", "triton", "transformers", "accelerate", "safetensors", "flash-attn", "radgraph",
    "nltk",
)  # fmt: skip


def doctor(as_json: JsonOption = False) -> None:
    """Show what is installed, run the fast paths and show which are used, and what is missing.

    Exit code 1 where a fast path that this machine supports is not used, or is wrong.
    """
    import torch

    import dive
    from dive.cli import self_test
    from dive.decode import native
    from dive.metrics import requirements

    findings = self_test.run()
    present = native.find()
    sick = [one for one in findings if not one.fine]

    facts: dict[str, Any] = {
        "dive": dive.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        # how it was built and what it runs here; None if it is not loaded
        "extension": native.build_info(),
        "extension_state": {"state": present.state, "reason": present.reason},
        "paths": [one._asdict() for one in findings],
        "metrics": requirements(),
    }
    if as_json:
        print(visible_json(facts))
        raise typer.Exit(bool(sick))
    console = stdout()
    what = table("what", "state")
    add_row(what, "dive", facts["dive"])
    add_row(what, "python", facts["python"])
    for name, version in facts["packages"].items():
        add_row(what, name, version or Text("not installed", "yellow"))
    add_row(what, "GPUs", ", ".join(facts["gpus"]) or "none")
    built = facts["extension"]
    add_row(
        what,
        "dive._C",
        ", ".join(f"{k} {v}" for k, v in built.items())
        if built
        else styled(f"{present.state}: {present.reason}", "yellow"),
    )
    console.print(what)
    console.print("\nFast paths, run on the bundled backbone:")
    console.print(_paths(findings))
    console.print("\nMetrics that need weights or packages of their own:")
    needs = table("metric", "state", "path", "how to get it")
    for one in facts["metrics"]:
        state = "there" if one["present"] else Text("missing", "yellow")
        add_row(needs, one["name"], state, str(one["where"]), one["how"])
    console.print(needs)
    if sick:
        names = ", ".join(f"{one.name} on {one.device}" for one in sick)
        console.print(
            styled("\nNot as it should be:", "bold yellow").append(f" {names}", "default")
        )
        raise typer.Exit(1)


def _paths(findings: "list[Finding]") -> Table:
    made = table("path", "device", "state", "why")
    for one in findings:
        colour = "green" if one.state == "used" else "" if one.fine else "bold yellow"
        add_row(made, one.name, one.device, Text(one.state, colour), one.why)
    return made


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
