"""Builds of csrc/ that tests and benchmarks make for themselves, below build/."""

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


class CannotBuild(Exception):
    """Names the program that is missing, or says what the compiler said."""


def find(program: str) -> str:
    """The path of a program, that of this Python's environment first."""
    beside = Path(sys.executable).parent / program
    path = str(beside) if beside.exists() else shutil.which(program)
    if path is None:
        raise CannotBuild(f"building {ROOT / 'csrc'} needs {program}")
    return path


def build(folder: Path, targets: list[str], *options: str) -> None:
    """Configures and builds targets of CMakeLists.txt; AssertionError where the compiler fails."""
    try:
        import pybind11
    except ImportError:
        raise CannotBuild("building csrc/ needs pybind11") from None
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        raise CannotBuild("no C++ compiler")
    configure = [
        *(find("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja", "-DDIVE_CUDA=OFF"),
        f"-DCMAKE_MAKE_PROGRAM={find('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        *options,
    ]
    for command in (configure, [find("cmake"), "--build", folder, "--target", *targets]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def load(folder: Path, name: str) -> ModuleType:
    """The extension module of this name in a folder that was built."""
    sys.path.insert(0, str(folder))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(folder))
