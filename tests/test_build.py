"""What the build chooses: its tools, how many files at a time, and the GPUs to compile for."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KNOWN = "75;80;86;89;90;100;120"  # by nvcc


@pytest.fixture
def build(monkeypatch):
    """The names in setup.py, which sets nothing up."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_tools_are_found_on_the_path_beside_python_and_in_their_package(
    build, tmp_path, monkeypatch
):
    find = build["find_tool"]
    bare = tmp_path / "bin"
    monkeypatch.setenv("PATH", str(bare))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "bin" / "python"))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "env" / "bin"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    assert find("cmake", (3, 25)) is None
    package = script(tmp_path / "site" / "cmake" / "data" / "bin" / "cmake", "echo cmake 4.1.0")
    assert find("cmake", (3, 25)) == str(package)
    beside = script(tmp_path / "env" / "bin" / "cmake", "echo cmake version 3.25.1")
    assert find("cmake", (3, 25)) == str(beside)
    # one that is too old, and one whose package is not there: `python -m cmake` of another Python
    old = script(bare / "cmake", "echo cmake version 3.18.4")
    assert find("cmake", (3, 25)) == str(beside)
    script(bare / "cmake", "echo cmake version 4.0.0; exit 1")
    assert find("cmake", (3, 25)) == str(beside)
    script(bare / "cmake", "echo cmake version 3.30.0")
    assert find("cmake", (3, 25)) == str(old)


def test_how_many_files_are_compiled_at_a_time(build, monkeypatch):
    jobs = build["jobs"]
    for name in ("CMAKE_BUILD_PARALLEL_LEVEL", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert 1 <= jobs() <= cores
    monkeypatch.setitem(build["jobs"].__globals__, "MEMORY_PER_JOB", 1)
    assert jobs() == cores
    monkeypatch.setitem(build["jobs"].__globals__, "MEMORY_PER_JOB", 2**60)
    assert jobs() == 1
    monkeypatch.setenv("MAX_JOBS", "7")
    assert jobs() == 7
    monkeypatch.setenv("CMAKE_BUILD_PARALLEL_LEVEL", "3")
    assert jobs() == 3
    for value in ("0", "-1", "many"):
        monkeypatch.setenv("CMAKE_BUILD_PARALLEL_LEVEL", value)
        with pytest.raises(Exception, match=f"CMAKE_BUILD_PARALLEL_LEVEL is '{value}', want"):
            jobs()


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("", "auto"),
        ("native", "native"),
        ("ALL", "all"),
        ("80, 90a 80-ptx", "80;90a;80-ptx"),
        ("100f", "100f"),
    ],
)
def test_the_list_of_gpus_is_read_as_people_write_it(build, monkeypatch, value, want):
    monkeypatch.setenv("DIVE_CUDA_ARCHS", value)
    assert build["cuda_archs"]() == want


def choose(folder: Path, archs: str, gpus: list[str]) -> str:
    """The GPUs that cuda.cmake compiles for where nvidia-smi shows `gpus`, or fails for none."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        pytest.skip("needs cmake")
    script(folder / "bin" / "nvidia-smi", "\n".join(f"echo {gpu}" for gpu in gpus) or "exit 9")
    code = folder / "choose.cmake"
    code.write_text(
        f'cmake_policy(VERSION 3.25)\nset(DIVE_CUDA_ARCHS "{archs}")\n'
        f'include("{ROOT / "csrc" / "cuda" / "cuda.cmake"}")\n'
        f'dive_choose_archs(archs why "{KNOWN}")\ndive_gencode(options "${{archs}}")\n'
        'message("RESULT ${archs}|${why}|${options}")\n'
    )
    done = subprocess.run(
        [cmake, "-P", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_gpus_that_are_here_are_compiled_for(tmp_path):
    two = choose(tmp_path, "auto", ["8.6", "9.0", "9.0"])
    assert "RESULT 86;90a||" in two
    assert "arch=compute_86,code=sm_86;-gencode;arch=compute_90a,code=sm_90a" in two
    # newer than nvcc: the newest PTX below it; too old for the kernels: left out, and said
    assert "RESULT 100-ptx||-gencode;arch=compute_100,code=compute_100" in choose(
        tmp_path, "auto", ["10.3"]
    )
    old = choose(tmp_path, "native", ["7.5", "8.9"])
    assert "RESULT 89||" in old and "compute capability 7.5, older than 8.0" in old


def test_without_a_gpu_a_short_list_is_compiled_for_and_said(tmp_path):
    for gpus in ([], ["7.5"]):
        said = choose(tmp_path, "auto", gpus)
        assert "RESULT 80;80-ptx;90a||" in said and "a short list of GPUs" in said
        # machine code and PTX from one compilation
        assert "arch=compute_80,code=[sm_80,compute_80];-gencode" in said
    assert "|DIVE_CUDA_ARCHS is 'native' and nvidia-smi shows no GPU" in choose(
        tmp_path, "native", []
    )


def test_a_release_is_for_every_gpu_and_a_list_for_its_own(tmp_path):
    everything = choose(tmp_path, "all", ["9.0"])
    assert "RESULT 80;80-ptx;86;89;90a;100;120;120-ptx||" in everything
    assert "RESULT 90a||-gencode;arch=compute_90a,code=sm_90a" in choose(tmp_path, "90a", [])
    assert "|nvcc does not know sm_150 of DIVE_CUDA_ARCHS|" in choose(tmp_path, "80;150", [])
