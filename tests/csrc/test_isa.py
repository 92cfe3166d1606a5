"""Which path is taken for processors and systems not here; test_installed is for this one."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_processors_and_systems_that_are_not_here(tmp_path):
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    sources = [ROOT / "csrc" / "cpu" / "isa.cpp", ROOT / "csrc" / "tests" / "isa_test.cpp"]
    program = tmp_path / "isa_test"
    command = [compiler, "-std=c++17", f"-I{ROOT / 'csrc'}", *sources, "-o", program]
    subprocess.run(command, check=True, timeout=120)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "17 cases, 0 failures" in done.stdout, done.stdout
