"""`import dive`: what it offers, and how little it loads."""

import json
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import dive

ROOT = Path(__file__).parents[2]


def run(code: str):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_loads_neither_torch_nor_a_module_of_its_own():
    code = "import json, sys, dive; dir(dive); print(json.dumps([n for n in sys.modules if n in "
    code += "('torch', 'numpy', 'transformers') or n.startswith('dive.')]))"
    assert run(code) == []


@pytest.mark.parametrize("name", ["data", "metrics", "decode", "ops", "training", "adapter"])
def test_a_module_is_an_attribute_without_its_import(name):
    assert run(f"import json, dive; print(json.dumps(dive.{name}.__name__))") == f"dive.{name}"


def test_modules_that_have_moved_are_attributes_still():
    listed = f"{{name: getattr(dive, name).__name__ for name in {sorted(dive._MOVED)}}}"
    assert run(f"import json, dive; print(json.dumps({listed}))") == dive._MOVED


def test_what_the_pages_import_is_there():
    """README and docs: every `from dive... import`, and every dive.name.name in their text."""
    imports, names = set(), set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        imports |= {*re.findall(r"^ *(from dive[\w.]* import [\w, ]+)$", text, re.M)}
        names |= {*re.findall(r"\bdive\.[a-z_]+(?:\.[A-Za-z_]+)*\b(?!\.py)", text)}
    names -= {name for name in names if name.startswith(("dive._C", "dive.kernels"))}
    assert len(imports) >= 5 and len(names) >= 10
    lines = [*sorted(imports), "import dive", *sorted(names), "import json", "print(json.dumps(1))"]
    assert run("\n".join(lines)) == 1


def test_readmes_first_call_works_by_itself(studies_folder):
    path = str(studies_folder / "studies.jsonl")
    code = f"import json, dive; s = dive.data.read_studies({path!r}, target='findings')"
    assert run(code + "; print(json.dumps([one.id for one in s]))")[0] == "study-00"


def test_every_module_is_an_attribute():
    found = {one.name for one in pkgutil.iter_modules(dive.__path__) if one.name[0] != "_"}
    assert {*dive._PACKAGES} <= found and not found & {*dive._EXPORTS}
    found -= {"kernels"}  # without triton it has no modules
    listed = f"[getattr(dive, name).__name__ for name in {sorted(found)}]"
    assert run(f"import json, dive; print(json.dumps({listed}))") == [
        f"dive.{name}" for name in sorted(found)
    ]


def test_dir_lists_names_and_modules_and_all_can_be_had():
    listed = dir(dive)
    assert {"distill", "generate", "evaluate", "steer", "data", "metrics", "decode"} <= {*listed}
    for name in set(listed) - {"kernels"}:  # without triton there are none
        assert getattr(dive, name) is not None
    assert isinstance(dive.data, ModuleType)
    with pytest.raises(AttributeError, match="module 'dive' has no attribute 'nothing'"):
        _ = dive.nothing


def test_functions_stay_functions_whatever_was_imported():
    names = ["distill", "generate", "evaluate", "steer"]
    assert not {*names} & {*dive._PACKAGES}
    for one in pkgutil.iter_modules(dive.__path__):
        if one.name[0] != "_" and one.name != "kernels":
            import_module(f"dive.{one.name}")
    import_module("dive.cli.generate")
    for name in names:
        assert isinstance(getattr(dive, name), FunctionType)
