"""Packages, their data files, and the build of dive._C by CMake.

Switches, read from the environment:
  DIVE_BUILD_EXT    1 (default) or 0: install without the extension, on a machine without a compiler
  DIVE_BUILD_CUDA   auto (default: the CUDA kernels where nvcc is found), on or off
  DIVE_CUDA_ARCHS   the GPUs to compile for: auto (default: those of this machine, or 80;80-ptx;90a
                    where there is none), native (those of this machine, or no CUDA), all (every
                    kind from Ampere on, for a release), or a list such as 80;90a;80-ptx
  DIVE_BUILD_WERROR 0 (default) or 1: warnings are errors
  CMAKE_BUILD_PARALLEL_LEVEL, else MAX_JOBS: how many files to compile at a time
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).parent.resolve()
MEMORY_PER_JOB = 2 * 2**30  # of nvcc on the largest source


def switch(name: str, default: str, choices: tuple[str, ...]) -> str:
    value = os.environ.get(name, default).lower()
    if value not in choices:
        raise SetupError(f"{name} is {value!r}, want one of {', '.join(choices)}")
    return value


def cuda_archs() -> str:
    value = os.environ.get("DIVE_CUDA_ARCHS", "")
    archs = ";".join(re.split(r"[;, ]+", value.strip())).lower() or "auto"
    one = r"(\d+|\d+[af])(-ptx)?"
    if not re.fullmatch(rf"auto|native|all|{one}(;{one})*", archs):
        raise SetupError(
            f"DIVE_CUDA_ARCHS is {value!r}, want numbers such as 80;86;90a;80-ptx, or auto, native "
            "or all"
        )
    return archs


def jobs() -> int:
    """The number of files to compile at a time: the number of processors, as memory allows."""
    for name in ("CMAKE_BUILD_PARALLEL_LEVEL", "MAX_JOBS"):
        if value := os.environ.get(name, "").strip():
            if not value.isdecimal() or int(value) < 1:
                raise SetupError(
                    f"{name} is {value!r}, want a number of files to compile at a time"
                )
            return int(value)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        memory = 8 * MEMORY_PER_JOB
    return max(1, min(cores or 1, memory // MEMORY_PER_JOB))


def find_tool(name: str, oldest: tuple[int, int]) -> str | None:
    """The first program of this name that runs and is new enough, or None.

    Looked for on PATH, which an isolated build leads to its own tools; beside this Python, whose
    environment need not be on PATH; and inside the Python package of the same name.
    """
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    folders += [Path(entry) / name / "data" / "bin" for entry in sys.path if entry]
    for folder in dict.fromkeys(folders):
        program = shutil.which(name, path=str(folder))
        if program is None:
            continue
        try:
            done = subprocess.run([program, "--version"], capture_output=True, text=True)
        except OSError:
            continue
        number = re.search(r"(\d+)\.(\d+)", done.stdout)
        if done.returncode == 0 and number and tuple(map(int, number.groups())) >= oldest:
            return program
    return None


class CMakeBuild(build_ext):
    """Runs CMake once and puts the module where setuptools expects it (in dive/ if editable)."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = (ROOT / self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve() / "cmake"
        cmake, ninja = find_tool("cmake", (3, 25)), find_tool("ninja", (1, 10))
        if cmake is None:
            raise SetupError(
                "building dive._C needs CMake 3.25 or newer, which is neither on PATH nor in this "
                "Python's environment. DIVE_BUILD_EXT=0 installs without it, on the slower "
                "PyTorch path."
            )
        # what CMake takes up in its first run alone
        names = ("CC", "CXX", "CXXFLAGS", "LDFLAGS", "CMAKE_TOOLCHAIN_FILE", "CUDACXX", "CUDA_HOME")
        chosen = repr([bool(ninja), *((name, os.environ.get(name)) for name in names)])
        stamp = folder / "chosen.txt"
        known = stamp.read_text() if stamp.exists() else None
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(folder)),
            *([] if known == chosen else ["--fresh"]),
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDIVE_CUDA={with_cuda.upper()}",
            f"-DDIVE_CUDA_ARCHS={archs}",
            f"-DDIVE_WERROR={'ON' if warnings_are_errors else 'OFF'}",
            *(["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
        ]
        build = [cmake, "--build", str(folder), "--target", "_C", "--parallel", str(parallel)]
        try:
            subprocess.run(configure, check=True)
            stamp.write_text(chosen)
            subprocess.run(build, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SetupError(
                f"building dive._C failed ({error}); it needs CMake and a C++17 compiler, and nvcc "
                "for the CUDA kernels, which DIVE_BUILD_CUDA=off leaves out. "
                "DIVE_BUILD_EXT=0 installs without it, on the slower PyTorch path."
            ) from error
        built = folder / target.name
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(built), str(target))


with_cuda = switch("DIVE_BUILD_CUDA", "auto", ("auto", "on", "off"))
archs = cuda_archs()
parallel = jobs()
warnings_are_errors = switch("DIVE_BUILD_WERROR", "0", ("0", "1")) == "1"
with_extension = switch("DIVE_BUILD_EXT", "1", ("0", "1")) == "1"

setup(
    packages=find_packages(include=["dive", "dive.*"]),
    # kernels/ has no __init__.py in the checkout and takes the place of dive/kernels here
    package_dir={"dive": "dive", "dive.kernels": "kernels"},
    package_data={
        "dive": ["py.typed", "_C.pyi"],
        "dive.data": ["*.yaml"],
        "dive.lexicon": ["*.yaml"],
        "dive.demo": ["backbone/**"],
        "dive.page": ["assets/*"],
        "dive.kernels": ["*.md"],
    },
    include_package_data=False,
    ext_modules=[Extension("dive._C", sources=[])] if with_extension else [],
    cmdclass={"build_ext": CMakeBuild},
)
