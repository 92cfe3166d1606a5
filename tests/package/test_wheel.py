"""What `pip wheel .` and `pip install -e .` produce, from a copy of the checkout.

The layout is read from a wheel without the extension, which takes seconds. DIVE_TEST_WHEEL names a
compiled wheel that is there already, as of `make wheel`; else one is compiled where the build tools
are installed. DIVE_SLOW_TESTS=1 adds the isolated build, which fetches its own tools.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from pathlib import Path

import pytest
from nvcc import find_nvcc

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
WANTED = (".py", ".pyi", ".yaml", ".j2", ".css", ".js")


def run(*command, cwd, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def copy_of_the_checkout(to):
    to.mkdir()
    for name in ("dive", "kernels", "csrc"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, to / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to / name)
    # a stand-in for the Triton files and for the demo's model, which may not exist yet
    (to / "kernels" / "probe.py").write_text("VALUE = 41 + 1\n")
    (to / "dive" / "demo" / "backbone" / "sub").mkdir(parents=True, exist_ok=True)
    (to / "dive" / "demo" / "backbone" / "sub" / "probe.json").write_text("{}")
    return to


def build_wheel(source, folder, *options, **environment):
    code, log = run(
        *PIP, "wheel", ".", "--no-deps", "-w", folder, *options, cwd=source, **environment
    )
    assert code == 0, log[-4000:]
    (wheel,) = folder.glob("dive_mrg-*.whl")
    return wheel


def run_with(site, script, cwd):
    """Runs a script in a fresh process that has `site` installed, and not the checkout.

    -S leaves out the .pth files of this environment, of which one may lead to the checkout; its
    packages are added as a plain path.
    """
    packages = sysconfig.get_paths()["purelib"]
    start = f"import site, sys; site.addsitedir({str(site)!r}); sys.path.append({packages!r})\n"
    return run(sys.executable, "-I", "-S", "-c", start + textwrap.dedent(script), cwd=cwd)


def needs(*modules):
    for module in modules:
        pytest.importorskip(module, reason=f"building the extension here needs {module}")
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An unpacked wheel that was built with DIVE_BUILD_EXT=0."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("plain")
    source = copy_of_the_checkout(folder / "source")
    wheel = build_wheel(source, folder / "wheel", "--no-build-isolation", DIVE_BUILD_EXT="0")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return wheel, folder / "site"


def test_without_the_extension_the_wheel_is_pure_python(plain):
    wheel, site = plain
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not list(site.rglob("*.so"))


def test_every_package_and_data_file_is_in_the_wheel(plain):
    _, site = plain
    held = {str(p.relative_to(site / "dive")) for p in (site / "dive").rglob("*") if p.is_file()}
    for path in (ROOT / "dive").rglob("*"):
        name = path.relative_to(ROOT / "dive")
        wanted = path.suffix in WANTED and name.parts[0] != "kernels"
        assert not wanted or str(name) in held
    assert {"py.typed", "_C.pyi", "demo/backbone/sub/probe.json"} <= held


def test_kernels_are_inside_dive_and_nowhere_else(plain):
    _, site = plain
    assert (site / "dive" / "kernels" / "probe.py").is_file()
    assert not (site / "dive" / "kernels" / "__init__.py").exists()  # the bridge stays at home
    top = {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")}
    assert top == {"dive"}
    script = """
        import importlib.util, dive.kernels.probe
        print(dive.kernels.probe.VALUE, importlib.util.find_spec("kernels"), dive.__file__)
    """
    code, log = run_with(site, script, site.parent / "wheel")
    assert code == 0 and log.startswith(f"42 None {site}"), log


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DIVE_CUDA_ARCHS", "sm_90", "DIVE_CUDA_ARCHS is 'sm_90', want numbers such as 80;86;90a"),
        ("DIVE_BUILD_CUDA", "maybe", "DIVE_BUILD_CUDA is 'maybe', want one of auto, on, off"),
        ("DIVE_BUILD_EXT", "no", "DIVE_BUILD_EXT is 'no', want one of 0, 1"),
    ],
)
def test_build_switches_that_make_no_sense_are_errors(name, value, message):
    code, log = run(sys.executable, "setup.py", "--version", cwd=ROOT, **{name: value})
    assert code != 0 and message in log


CHECK = """
    import os, sys
    import torch
    import dive._C
    from dive.decode import native
    to = torch.zeros(1024)
    dive._C.copy_memory(to, torch.ones(1024))
    assert torch.equal(to, torch.ones(1024))
    assert native.build_info()["build_type"] == "Release"
    print("loaded", dive._C.__file__)
"""


def dynamic_libraries(module):
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf")
    _, log = run(readelf, "-d", module, cwd=ROOT)
    return [line.split("[")[1].rstrip("]") for line in log.splitlines() if "(NEEDED)" in line]


def check_compiled_wheel(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (module,) = (folder / "dive").glob("_C*.so")
    code, log = run_with(folder, CHECK, folder.parent)
    assert code == 0 and f"loaded {module}" in log, log
    libraries = dynamic_libraries(module)
    known = ("libc.", "libm.", "libstdc++.", "libgcc_s.", "libpthread.", "libdl.", "ld-linux")
    assert libraries and all(name.startswith(known) for name in libraries), libraries
    # only the entry point and type information may be seen from outside
    if shutil.which("nm"):
        _, symbols = run("nm", "-D", "--defined-only", module, cwd=ROOT)
        names = [line.split()[-1] for line in symbols.splitlines()]
        assert [name for name in names if not name.startswith("_ZT")] == ["PyInit__C"]


def test_the_compiled_wheel_works_and_knows_nothing_of_torch(tmp_path):
    if given := os.environ.get("DIVE_TEST_WHEEL"):
        check_compiled_wheel(Path(given), tmp_path / "site")
        return
    needs("pybind11", "ninja", "cmake")
    source = copy_of_the_checkout(tmp_path / "source")
    wheel = build_wheel(source, tmp_path / "wheel", "--no-build-isolation", DIVE_BUILD_CUDA="off")
    assert "-cp3" in wheel.name
    check_compiled_wheel(wheel, tmp_path / "site")


@pytest.mark.skipif(os.environ.get("DIVE_SLOW_TESTS") != "1", reason="DIVE_SLOW_TESTS=1 runs it")
def test_a_wheel_with_cuda_needs_no_library_of_cuda(tmp_path):
    needs("pybind11", "ninja", "cmake")
    if find_nvcc() is None:
        pytest.skip("no nvcc")
    source = copy_of_the_checkout(tmp_path / "source")
    switches = {"DIVE_BUILD_CUDA": "on", "DIVE_CUDA_ARCHS": "80;90a"}
    wheel = build_wheel(source, tmp_path / "wheel", "--no-build-isolation", **switches)
    check_compiled_wheel(wheel, tmp_path / "site")
    script = "from dive import _C; print(_C.build_info()['cuda_archs'])"
    code, log = run_with(tmp_path / "site", script, tmp_path)
    assert code == 0 and "['80', '90a']" in log, log


@pytest.mark.skipif(os.environ.get("DIVE_SLOW_TESTS") != "1", reason="DIVE_SLOW_TESTS=1 runs it")
def test_the_wheel_builds_in_an_isolated_environment(tmp_path):
    source = copy_of_the_checkout(tmp_path / "source")
    code, log = run(
        *(*PIP, "wheel", ".", "-v", "--no-deps", "-w", tmp_path / "wheel"),
        cwd=source,
        DIVE_BUILD_CUDA="off",
    )
    assert code == 0, log[-4000:]
    assert re.search(r"\[1/\d+\] Building CXX object", log)  # by ninja, which counts so
    (wheel,) = (tmp_path / "wheel").glob("dive_mrg-*.whl")
    check_compiled_wheel(wheel, tmp_path / "site")


@pytest.mark.skipif(os.environ.get("DIVE_SLOW_TESTS") != "1", reason="DIVE_SLOW_TESTS=1 runs it")
def test_an_editable_install_finds_kernels_and_extension(tmp_path):
    needs("pybind11", "ninja", "cmake")
    source = copy_of_the_checkout(tmp_path / "source")
    target = tmp_path / "site"
    command = [*PIP, "install", "-e", ".", "--no-deps", "--no-build-isolation", "--target", target]
    code, log = run(*command, cwd=source)
    assert code == 0, log[-4000:]
    (module,) = (source / "dive").glob("_C*.so")
    code, log = run_with(target, CHECK, tmp_path)
    assert code == 0 and f"loaded {module}" in log, log
