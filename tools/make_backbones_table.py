"""Writes the table of docs/backbones.md: the outcome of each test for each family.

    python tools/make_backbones_table.py

runs test_more_backbones.py and reads its outcomes, so that a line has what passed here, with the
versions. The text around the table stays as it is.
"""

import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "backbones.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
# column -> its tests
COLUMNS = {
    "attach": ("test_a_fresh_adapter", "test_the_head", "test_calibration"),
    "teacher lengths": ("test_teacher_lengths",),
    "training = generation": ("test_training_and_generation", "test_who_attends"),
    "distil, save, generate": ("test_distil_save",),
    "interleaved": ("test_interleaved",),
    "token budget": ("test_the_budget",),
    "no torchvision": ("test_a_composed",),
    "image cache": ("test_cached_images",),
}


def outcomes() -> dict[str, dict[str, list[str]]]:
    """Returns family -> test -> "passed", "failed" or "skipped", one per parameter."""
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={junit}"]
        tests = ["tests/backbone/test_more_backbones.py", "tests/training/test_image_features.py"]
        subprocess.run([*command, *tests], cwd=ROOT, env=dict(os.environ), check=False)
        cases = ElementTree.parse(junit).getroot().iter("testcase")
        found: dict[str, dict[str, list[str]]] = {}
        for case in cases:
            test, _, parameters = case.attrib["name"].partition("[")
            family = parameters.removesuffix("]").split("-all")[0].split("-response")[0]
            if not family:
                continue
            kinds = {child.tag for child in case}
            bad = "failed" if kinds & {"failure", "error"} else None
            outcome = bad or ("skipped" if "skipped" in kinds else "passed")
            found.setdefault(family, {}).setdefault(test, []).append(outcome)
    return found


def cell(tests: dict[str, list[str]], names: tuple[str, ...]) -> str:
    seen = {o for test, all_ in tests.items() if test.startswith(names) for o in all_}
    if not seen:
        return ""
    return "failed" if "failed" in seen else "not run" if "skipped" in seen else "yes"


def table(found: dict[str, dict[str, list[str]]]) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    lines = [
        f"Tested with Python {platform.python_version()}, {versions}, on a CPU, with random models "
        "of each family's own classes.",
        "",
        "| family | " + " | ".join(COLUMNS) + " |",
        "| --- " * (1 + len(COLUMNS)) + "|",
    ]
    for family, tests in found.items():
        cells = [cell(tests, names) for names in COLUMNS.values()]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after and END not in text:
        raise SystemExit(f"{PAGE} has no {BEGIN} ... {END}")
    PAGE.write_text(f"{before}{BEGIN}\n{table(outcomes())}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
