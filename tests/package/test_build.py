"""What the build chooses: its tools, how many files at a time, and the GPUs to compile for."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KNOWN = "75;80;86;89;90;100;120;90a"  # by nvcc


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


def cmake(folder: Path, gpus: list[str], lines: str) -> str:
    """What lines of CMake say after cuda.cmake, where nvidia-smi shows `gpus`, or fails for none.

    Ends with "STOPPED" where they end in an error.
    """
    program = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("needs cmake")
    script(folder / "bin" / "nvidia-smi", "\n".join(f"echo {gpu}" for gpu in gpus) or "exit 9")
    code = folder / "choose.cmake"
    file = ROOT / "csrc" / "cuda" / "cuda.cmake"
    code.write_text(f'cmake_policy(VERSION 3.25)\ninclude("{file}")\n{lines}\n')
    done = subprocess.run(
        [program, "-P", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"},
    )
    return done.stdout + done.stderr + ("STOPPED" if done.returncode else "")


def choose(folder: Path, archs: str, gpus: list[str]) -> str:
    """The GPUs that cuda.cmake compiles for."""
    said = cmake(
        folder,
        gpus,
        f'set(DIVE_CUDA_ARCHS "{archs}")\n'
        f'dive_choose_archs(archs why "{KNOWN}")\ndive_gencode(options "${{archs}}")\n'
        'message("RESULT ${archs}|${why}|${options}")',
    )
    assert "STOPPED" not in said, said
    return said


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


def nvcc(folder: Path, known: str, release: str, fault: str = "") -> Path:
    """A script that answers as nvcc of a release does; where it compiles, `fault` is its error."""
    (folder / "cuda" / "lib64").mkdir(parents=True)
    (folder / "cuda" / "lib64" / "libcudart_static.a").touch()
    (folder / "fault").write_text(fault)
    plain = "".join(f"sm_{one}\\n" for one in known.split() if one.isdigit())
    return script(
        folder / "cuda" / "bin" / "nvcc",
        f"""\
case "$*" in
  *--list-gpu-code*) printf '{plain}'; exit 0;;  # none that has a letter
  *--version*) echo "Cuda compilation tools, release {release}"; exit 0;;
esac
for one in "$@"; do
  case "$one" in
    arch=compute_*)
      name="${{one#arch=compute_}}"; name="${{name%%,*}}"
      case " {known} " in
        *" $name "*) ;;
        *) echo "nvcc fatal   : Unsupported gpu architecture 'compute_$name'" >&2; exit 1;;
      esac;;
  esac
done
case "$*" in *--dryrun*) echo '#$ TOP={folder}/cuda' >&2; exit 0;; esac
echo "$@" >> {folder}/compiled
cat {folder}/fault >&2; test ! -s {folder}/fault""",
    )


def plan(folder: Path, compiler: Path, gpus=(), archs="auto", wanted="AUTO") -> str:
    return cmake(
        folder,
        list(gpus),
        f'set(DIVE_CUDA_ARCHS "{archs}")\nset(DIVE_NVCC "{compiler}")\n'
        f"set(DIVE_CUDA_WANTED {wanted})\nset(CMAKE_CXX_COMPILER /usr/bin/g++-14)\n"
        f'set(CMAKE_CURRENT_BINARY_DIR "{folder}")\nset(CMAKE_CURRENT_SOURCE_DIR "{ROOT}")\n'
        "dive_set_up_cuda(archs flags runtime why)\n"
        'if(why)\ndive_cuda_missing("${why}")\nendif()\nmessage("RESULT ${archs}|${flags}|")',
    )


@pytest.mark.parametrize(
    ("release", "known", "gpus", "want"),
    [
        ("13.0", "75 80 86 89 90 90a 100 120", [], "80;80-ptx;90a"),
        ("13.0", "75 80 86 89 90 90a 100 120", ["9.0"], "90a"),
        # knows 90, and not 90a
        ("11.8", "35 52 80 86 89 90", [], "80;80-ptx;90"),
        ("11.8", "35 52 80 86 89 90", ["9.0", "8.0"], "90;80"),
        ("11.8", "35 52 80 86 89 90", ["10.0"], "90-ptx"),
        ("11.6", "35 52 80 86 87", [], "80;80-ptx"),
        ("11.6", "35 52 80 86 87", ["9.0"], "87-ptx"),
    ],
)
def test_an_older_nvcc_compiles_for_what_it_knows(release, known, gpus, want, tmp_path):
    said = plan(tmp_path, nvcc(tmp_path, known, release), gpus)
    assert f"RESULT {want}|" in said
    # what is tried is what will be compiled, in one go
    (tried,) = (tmp_path / "compiled").read_text().splitlines()
    flags = said.split(f"RESULT {want}|")[1].split("|")[0].replace(";", " ")
    assert tried.startswith(f"{flags} -c ") and "-ccbin /usr/bin/g++-14" in flags
    assert ("compress-mode" in flags) == (release == "13.0")


def test_a_named_gpu_that_nvcc_does_not_know_is_not_left_out(tmp_path):
    old = nvcc(tmp_path, "80 86 89 90", "11.8")
    for archs, missing in (("80;90a", "90a"), ("90a-ptx", "90a"), ("all", "120"), ("100f", "100f")):
        said = plan(tmp_path, old, archs=archs)
        assert f"CUDA: none, nvcc does not know sm_{missing} of DIVE_CUDA_ARCHS" in said
        assert "RESULT ||" in said
    assert "STOPPED" in plan(tmp_path, old, archs="80;90a", wanted="ON")
    assert "RESULT 80;90|" in plan(tmp_path, old, archs="80;90")
    ancient = nvcc(tmp_path / "ancient", "35 70", "10.2")
    assert "is too old to know sm_80" in plan(tmp_path, ancient)


UNSUPPORTED = """\
In file included from /usr/include/cuda_runtime.h:83,
                 from <command-line>:
/usr/include/crt/host_config.h:143:2: error: #error -- unsupported GNU version! gcc later than 12
  143 | #error -- unsupported GNU version!
"""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (UNSUPPORTED, "error: #error -- unsupported GNU version! gcc later than 12"),
        ("warning: odd; [brackets\nnvcc fatal   : Could not open it\n", "Could not open it"),
        ("\ncc1plus was killed\n", "cc1plus was killed"),
    ],
)
def test_an_nvcc_that_does_not_compile_here_is_left_out_and_said_why(fault, said, tmp_path):
    old = nvcc(tmp_path, "80 90 90a", "12.2", fault)
    automatic = plan(tmp_path, old)
    assert f"CUDA: none, {old} does not compile with /usr/bin/g++-14 (CXX): " in automatic
    assert said in automatic and "RESULT ||" in automatic and "STOPPED" not in automatic
    assert "from <command-line>" not in automatic and "brackets" not in automatic
    insisted = plan(tmp_path, old, wanted="ON")
    assert "DIVE_CUDA is ON, but" in insisted and "STOPPED" in insisted
