"""`import dive`: what it offers, and how little it loads."""

import json
import pkgutil
import subprocess
import sys
from importlib import import_module
from types import FunctionType, ModuleType

import pytest

import dive


def run(code: str):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_loads_neither_torch_nor_a_module_of_its_own():
    code = "import json, sys, dive; dir(dive); print(json.dumps([n for n in sys.modules if n in "
    code += "('torch', 'numpy', 'transformers') or n.startswith('dive.')]))"
    assert run(code) == []


@pytest.mark.parametrize("name", ["data", "metrics", "decode", "ops", "structure", "adapter"])
def test_a_module_is_an_attribute_without_its_import(name):
    assert run(f"import json, dive; print(json.dumps(dive.{name}.__name__))") == f"dive.{name}"


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
