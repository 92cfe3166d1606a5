"""The machine that a figure was measured on."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("triton", "transformers", "numpy")


def facts(device: torch.device) -> dict[str, Any]:
    """Returns device, load and versions."""
    known: dict[str, Any] = {"device": _processor(), "cores": os.cpu_count()}
    if device.type == "cuda":
        known["host"] = known["device"]
        known["device"] = torch.cuda.get_device_name(device)
        known["cuda"] = torch.version.cuda
        known["driver, power limit, top clock"] = _nvidia_smi()
    return {
        **known,
        "load_1min": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def version(package: str) -> str | None:
    """Returns the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _nvidia_smi() -> str | None:
    what = "--query-gpu=driver_version,power.limit,clocks.max.sm"
    try:
        done = subprocess.run(
            ["nvidia-smi", what, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
