"""Packages, their data files, and the build of dive._C by CMake and ninja.

Switches, read from the environment:
  DIVE_BUILD_EXT   1 (default) or 0: install without the extension, on a machine without a compiler
  DIVE_BUILD_CUDA  auto (default: the CUDA kernels where nvcc is found), on or off
  DIVE_CUDA_ARCHS  the GPUs to compile for, as 80;90a, or native for those of this machine;
                   empty: every kind from Ampere on
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).parent.resolve()


def switch(name: str, default: str, choices: tuple[str, ...]) -> str:
    value = os.environ.get(name, default).lower()
    if value not in choices:
        raise SetupError(f"{name} is {value!r}, want one of {', '.join(choices)}")
    return value


def cuda_archs() -> str:
    value = os.environ.get("DIVE_CUDA_ARCHS", "")
    archs = ";".join(re.split(r"[;, ]+", value.strip()))
    if not re.fullmatch(r"(native|\d+[af]?(;\d+[af]?)*)?", archs):
        raise SetupError(f"DIVE_CUDA_ARCHS is {value!r}, want numbers such as 80;86;90a, or native")
    return archs


class CMakeBuild(build_ext):
    """Runs CMake once; the module lands where setuptools wants it (beside dive/ if editable)."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = (ROOT / self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve() / "cmake"
        ninja = self._ninja()
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(folder)),
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDIVE_CUDA={with_cuda.upper()}",
            f"-DDIVE_CUDA_ARCHS={archs}" if archs else "-UDIVE_CUDA_ARCHS",
            *(["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
        ]
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(folder), "--target", "_C"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SetupError(
                f"building dive._C failed ({error}); it needs CMake and a C++17 compiler, and nvcc "
                "for the CUDA kernels, which DIVE_BUILD_CUDA=off leaves out. "
                "DIVE_BUILD_EXT=0 installs without it, on the slower PyTorch path."
            ) from error
        built = folder / target.name
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(built), str(target))

    @staticmethod
    def _ninja() -> str | None:
        """Where the ninja of the build environment is; another generator serves without it."""
        try:
            from ninja import BIN_DIR
        except ImportError:
            return None
        program = Path(BIN_DIR) / "ninja"
        return str(program) if program.exists() else None


with_cuda = switch("DIVE_BUILD_CUDA", "auto", ("auto", "on", "off"))
archs = cuda_archs()
with_extension = switch("DIVE_BUILD_EXT", "1", ("0", "1")) == "1"

setup(
    packages=find_packages(include=["dive", "dive.*"]),
    # kernels/ has no __init__.py in the checkout and takes the place of dive/kernels here
    package_dir={"dive": "dive", "dive.kernels": "kernels"},
    package_data={
        "dive": ["py.typed", "_C.pyi"],
        "dive.lexicon": ["*.yaml"],
        "dive.demo": ["*.j2", "backbone/**"],
        "dive.kernels": ["*.md"],
    },
    include_package_data=False,
    ext_modules=[Extension("dive._C", sources=[])] if with_extension else [],
    cmdclass={"build_ext": CMakeBuild},
)
