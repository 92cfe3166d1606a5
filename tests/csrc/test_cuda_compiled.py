"""Every CUDA kernel, compiled for GPUs old and new: warnings are errors, and nothing spills."""

import nvcc
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first run compiles
# the oldest and the first with clusters; `python tests/helpers/nvcc.py` does them all, every night
ARCHS = ("80", "90a")


@pytest.fixture(scope="module")
def kernels():
    compiler = nvcc.find_nvcc()
    if compiler is None:
        pytest.skip("no nvcc: pip install -e '.[cuda-build]' brings it")
    return nvcc.compile_all(compiler, ARCHS)


@pytest.mark.parametrize("arch", ARCHS)
def test_no_kernel_spills_registers(kernels, arch):
    own = [kernel for kernel in kernels if kernel.arch == arch]
    assert {kernel.source for kernel in own} >= {
        "add_and_norm.cu",
        "attention.cu",
        "embed.cu",
        "predict.cu",
        "matvec.cu",
        "tile_product.cu",
    }
    assert [kernel for kernel in own if kernel.spills] == []


def test_every_gpu_has_every_kernel(kernels):
    names = {arch: {k.name for k in kernels if k.arch == arch} for arch in ARCHS}
    assert all(own == names["80"] for own in names.values())


def test_shared_memory_is_what_launches_ask_for_and_no_more(kernels):
    """Static shared memory would come on top of what the launch's own sizes say."""
    assert [kernel for kernel in kernels if kernel.shared] == []


def test_what_ptxas_says_is_understood():
    said = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3addPf' for 'sm_90a'
ptxas info    : Function properties for _Z3addPf
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes smem, 380 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3subPf' for 'sm_90a'
ptxas info    : Function properties for _Z3subPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers
"""
    assert nvcc.parse(said, "a.cu", "90a") == [
        nvcc.Kernel("_Z3addPf", "a.cu", "90a", 40, 16, 16, 20),
        nvcc.Kernel("_Z3subPf", "a.cu", "90a", 8, 0, 0, 0),
    ]
    with pytest.raises(nvcc.CompileError, match="something unknown"):
        nvcc.parse("Compiling entry function '_Z3addPf' for 'sm_90a'", "a.cu", "90a")
