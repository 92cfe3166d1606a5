"""Packages of dive/ import downwards only, in the order that pyproject.toml states."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import layout

ROOT = Path(__file__).parents[2]


def test_contracts():
    """In a process of its own: import-linter disables the loggers of the one it runs in."""
    code = "from importlinter import cli; raise SystemExit(cli.lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_figures():
    """What contracts do not see: kernels/ in its place, and names taken from `dive` itself."""
    found = layout.read()
    assert found.against(layout.order()) == []
    assert found.circles == []
    assert len(found.layers) <= 9
    assert len(found.top) <= 23, found.top


@pytest.fixture
def tree(tmp_path):
    """A checkout of four files, each of which a test may change."""
    texts = {
        "dive/__init__.py": '_EXPORTS = {"generate": "dive.high"}\n',
        "dive/high/__init__.py": "from dive.low import one\n",
        "dive/low/__init__.py": "",
        "dive/low/one.py": "",
        "kernels/row.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "dive/kernels").mkdir()
    (tmp_path / "dive/kernels/__init__.py").write_text("")
    return tmp_path


ORDER = [["high"], ["low"], ["kernels"]]


def test_a_sound_tree(tree):
    found = layout.read(tree)
    assert found.layers == [["high"], ["kernels", "low"]] or found.layers == [["high"], ["low"]]
    assert (found.circles, found.against(ORDER)) == ([], [])


@pytest.mark.parametrize(
    "name, text",
    [
        ("dive/low/one.py", "import dive.high\n"),
        ("dive/low/one.py", "def f():\n    from dive import high\n"),
        ("dive/low/one.py", "def f():\n    from dive import generate\n"),
        ("dive/low/one.py", "import dive\n\ndef f():\n    return dive.generate\n"),
        ("kernels/row.py", "from dive import high\n"),
    ],
)
def test_an_import_that_goes_up(tree, name, text):
    (tree / name).write_text(text)
    found = layout.read(tree)
    (wrong,) = found.against(ORDER)
    assert re.match(r"(low|kernels) -> high \(dive\.(low\.one|kernels\.row)\)", wrong)


def test_type_checking_does_not_count(tree):
    (tree / "dive/low/one.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dive import high\n"
    )
    assert layout.read(tree).against(ORDER) == []


def test_a_circle_between_modules_of_one_package(tree):
    (tree / "dive/low/one.py").write_text("def f():\n    import dive.low.two\n")
    (tree / "dive/low/two.py").write_text("from dive.low import one\n")
    assert layout.read(tree).circles == [["dive.low.one", "dive.low.two"]]


def test_the_map_names_what_is_there():
    """docs/architecture.md: every package, and no file that has gone."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in layout.read().top:
        if name not in ("__init__", "__main__"):
            assert re.search(rf"`(dive/)?{name}(/|\.py)", page), name
    names = set(re.findall(r"`([\w/.-]+\.(?:py|cpp|md|toml))`", page))
    assert len(names) > 20
    folders = [ROOT, ROOT / "dive", *(ROOT / "dive").rglob("*/"), ROOT / "csrc", ROOT / "kernels"]
    gone = [one for one in names if not any((folder / one).exists() for folder in folders)]
    assert [one for one in gone if "NAME" not in one] == []
