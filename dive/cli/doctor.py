"""`dive doctor`: what is installed, and what is used."""

import json
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from dive.cli.options import JsonOption

if TYPE_CHECKING:
    from dive.self_test import Finding

_PACKAGES = (
    "torch", "triton", "transformers", "accelerate", "safetensors", "flash-attn", "radgraph",
    "nltk",
)  # fmt: skip


def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed, run the fast paths and say which are used, and what is missing.

    Ends with 1 where a fast path that belongs on this machine is not used, or is wrong.
    """
    import torch

    import dive
    from dive import extension, self_test
    from dive.metrics import requirements

    findings = self_test.run()
    sick = [one for one in findings if not one.fine]

    facts: dict[str, Any] = {
        "dive": dive.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "extension": extension.build_info() if extension.available() else None,
        "paths": [one._asdict() for one in findings],
        "metrics": requirements(),
    }
    if as_json:
        print(json.dumps(facts))
        raise typer.Exit(bool(sick))
    console = Console(highlight=False)
    table = Table("what", "state", box=None, pad_edge=False)
    table.add_row("dive", facts["dive"])
    table.add_row("python", facts["python"])
    for name, version in facts["packages"].items():
        table.add_row(name, version or "[yellow]not installed[/]")
    table.add_row("GPUs", ", ".join(facts["gpus"]) or "none")
    built = facts["extension"]
    table.add_row(
        "dive._C",
        ", ".join(f"{k} {v}" for k, v in built.items())
        if built
        else "[yellow]not built: the PyTorch path is used; pip install . builds it[/]",
    )
    console.print(table)
    console.print("\nFast paths, run on the bundled backbone:")
    console.print(_paths(findings))
    console.print("\nMetrics that need weights or packages of their own:")
    needs = Table("metric", "state", "where it must lie", "how to get it", box=None, pad_edge=False)
    for one in facts["metrics"]:
        state = "there" if one["present"] else "[yellow]missing[/]"
        needs.add_row(one["name"], state, str(one["where"]), one["how"])
    console.print(needs)
    if sick:
        names = ", ".join(f"{one.name} on {one.device}" for one in sick)
        console.print(f"\n[bold yellow]Not as it should be:[/] {names}")
        raise typer.Exit(1)


def _paths(findings: "list[Finding]") -> Table:
    table = Table("path", "device", "state", "why", box=None, pad_edge=False)
    for one in findings:
        colour = "green" if one.state == "used" else "default" if one.fine else "bold yellow"
        table.add_row(one.name, one.device, f"[{colour}]{one.state}[/]", one.why)
    return table


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
