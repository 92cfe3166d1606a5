"""Which instruction sets dive._C finds, against what the operating system says of the processor."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dive import extension

ROOT = Path(__file__).parents[1]

# what each path's kernels are compiled for, in the words of /proc/cpuinfo
NEEDED = {
    "scalar": set(),
    "avx2": {"avx", "avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"},
    "avx512_bf16": {"avx512_bf16"},
}


def usable(flags: set[str]) -> list[str]:
    """The paths, plainest first, up to the first whose instructions are not all there."""
    names = []
    for name, needed in NEEDED.items():
        if not needed <= flags:
            break
        names.append(name)
    return names


def test_the_paths_are_those_that_the_processor_has():
    info = extension.build_info()
    if info is None:
        pytest.skip("dive._C is not built")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        pytest.skip("no /proc/cpuinfo")
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    assert info["isa_usable"] == usable(flags)


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
