"""`dive doctor`: what is installed."""

import json
import platform
from importlib import metadata
from typing import Any

from rich.console import Console
from rich.table import Table

from dive.cli.options import JsonOption

_PACKAGES = (
    "torch", "triton", "transformers", "accelerate", "safetensors", "flash-attn", "radgraph",
    "nltk",
)  # fmt: skip


def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed, which paths run here, and which weights are missing."""
    import torch

    import dive
    from dive import extension
    from dive.metrics import requirements

    facts: dict[str, Any] = {
        "dive": dive.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "extension": extension.build_info() if extension.available() else None,
        "metrics": requirements(),
    }
    if as_json:
        print(json.dumps(facts))
        return
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
    console.print("\nMetrics that need weights or packages of their own:")
    needs = Table("metric", "state", "where it must lie", "how to get it", box=None, pad_edge=False)
    for one in facts["metrics"]:
        state = "there" if one["present"] else "[yellow]missing[/]"
        needs.add_row(one["name"], state, str(one["where"]), one["how"])
    console.print(needs)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
