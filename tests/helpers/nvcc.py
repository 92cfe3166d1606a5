"""Compiles every CUDA source for every GPU, and reads from ptxas what became of each kernel.

    python tests/helpers/nvcc.py [ARCH ...]

prints registers, shared memory, stack and spills. What was compiled is kept in build/nvcc, by a
hash of the sources, the flags and the compiler.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHS = ("80", "86", "89", "90a", "100", "120")
FLAGS = ("-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v", "-Xcompiler=-Wall")

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_\w+'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Kernel:
    """A kernel compiled for one GPU: bytes per thread, static shared memory in bytes per block."""

    name: str
    source: str
    arch: str
    registers: int
    shared: int
    stack: int
    spills: int  # stores and loads


class CompileError(Exception):
    """What nvcc said."""


def find_nvcc() -> str | None:
    """As csrc/cuda/cuda.cmake looks for it: CUDACXX, PATH, CUDA_HOME, nvidia-cuda-nvcc."""
    if named := os.environ.get("CUDACXX"):
        return named
    if on_path := shutil.which("nvcc"):
        return on_path
    packages = Path(sysconfig.get_paths()["purelib"])
    homes = [Path(os.environ["CUDA_HOME"])] if "CUDA_HOME" in os.environ else []
    homes += [Path("/usr/local/cuda"), *sorted(packages.glob("nvidia/cu[0-9]*"))]
    for home in homes:
        if (home / "bin" / "nvcc").is_file():
            return str(home / "bin" / "nvcc")
    return None


def compile_one(nvcc: str, source: Path, arch: str) -> list[Kernel]:
    """Compiles a source for one GPU. CompileError: warnings are errors too."""
    seen = hashlib.sha256(repr((FLAGS, arch, source.name)).encode())
    seen.update(subprocess.run([nvcc, "--version"], capture_output=True, check=True).stdout)
    headers = [*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*.*h")]
    for path in [source, *sorted(headers)]:
        seen.update(path.read_bytes())
    kept = ROOT / "build" / "nvcc" / f"{source.stem}-{arch}-{seen.hexdigest()[:16]}.json"
    if kept.is_file():
        return [Kernel(**one) for one in json.loads(kept.read_text())]
    kept.parent.mkdir(parents=True, exist_ok=True)
    command = [nvcc, *FLAGS, "-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    command += ["-I", str(ROOT / "csrc"), "-cubin", "-o", os.devnull, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"{source.name} for sm_{arch}:\n{done.stdout}{done.stderr}")
    kernels = parse(done.stdout + done.stderr, source.name, arch)
    for old in kept.parent.glob(f"{source.stem}-{arch}-*.json"):
        old.unlink(missing_ok=True)
    kept.write_text(json.dumps([asdict(kernel) for kernel in kernels]))
    return kernels


def parse(text: str, source: str, arch: str) -> list[Kernel]:
    """The kernels that ptxas -v tells of; every one has a line of each kind."""
    kernels = []
    for part in text.split("Compiling entry function")[1:]:
        part = "Compiling entry function" + part
        entry, spills, used = _ENTRY.search(part), _SPILLS.search(part), _USED.search(part)
        if entry is None or spills is None or used is None:
            raise CompileError(f"{source} for sm_{arch}: ptxas said something unknown:\n{part}")
        shared = _SHARED.search(part)
        stack, stores, loads = map(int, spills.groups())
        size = 0 if shared is None else int(shared.group(1))
        kernels.append(
            Kernel(entry.group(1), source, arch, int(used.group(1)), size, stack, stores + loads)
        )
    return kernels


def compile_all(nvcc: str, archs: tuple[str, ...] = ARCHS, jobs: int | None = None) -> list[Kernel]:
    """Every source for every GPU, `jobs` at a time (as many as there are processors)."""
    pairs = [(source, arch) for source in SOURCES for arch in archs]
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        found = pool.map(lambda pair: compile_one(nvcc, *pair), pairs)
        return [kernel for kernels in found for kernel in kernels]


def main() -> int:
    nvcc = find_nvcc()
    if nvcc is None:
        print("nvcc is not in CUDACXX, PATH or CUDA_HOME, nor installed as nvidia-cuda-nvcc")
        return 2
    try:
        kernels = compile_all(nvcc, tuple(sys.argv[1:]) or ARCHS)
    except CompileError as error:
        print(error)
        return 1
    print(f"{'arch':>5} {'registers':>9} {'shared':>7} {'stack':>6} {'spills':>6}  kernel")
    names = subprocess.run(
        ["c++filt"], input="\n".join(k.name for k in kernels), capture_output=True, text=True
    ).stdout.splitlines()
    for kernel, name in zip(kernels, names, strict=True):
        short = name.replace("dive::cuda::(anonymous namespace)::", "").replace("dive::", "")
        print(
            f"{kernel.arch:>5} {kernel.registers:>9} {kernel.shared:>7} {kernel.stack:>6} "
            f"{kernel.spills:>6}  {short.removeprefix('void ')}"
        )
    spilt = sum(kernel.spills > 0 for kernel in kernels)
    print(f"{len(kernels)} kernels, {spilt} of them spill")
    return 1 if spilt else 0


if __name__ == "__main__":
    sys.exit(main())
