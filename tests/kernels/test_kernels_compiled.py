"""The Triton kernels compiled ahead of time, without a GPU: no spills, shared memory within bounds.

A part of the table; `make aot` builds all of it.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled under the interpreter", allow_module_level=True)

from dive.kernels import launch_table as table
from tools import compile_kernels as aot

LARGEST = [v for v in aot.steer_variants((80, 100), (torch.bfloat16,), (128,), (4096,), (True,))]
HOPPER = list(aot.steer_variants((90,), (torch.bfloat16, torch.float32), (16, 64, 128), (4096,)))
LOSS = list(aot.cross_entropy_variants((80, 90, 100), (torch.bfloat16,), (16384,)))
LOSS += aot.cross_entropy_variants((90,), (torch.float32,), (16384,))
# without the options of the others: no mask, no gradient, no cap, and another activation
PLAIN = list(
    aot.steer_variants((90,), (torch.float16,), (0,), (4096,), (True,), ("gelu",), more=(False,))
)
PLAIN += aot.cross_entropy_variants((90,), (torch.float16,), (16384,), more=(False,))
# the reduction is the same code for every dtype of the stream
VARIANTS = [v for v in (*HOPPER, *LARGEST, *LOSS) if v.kernel != "steer_reduce"]
LOSS_MOVES = list(aot.cross_entropy_variants((90,), (torch.bfloat16,), (16384,)))
SMALL = ("cross_entropy_scale", "cross_entropy_gather")
VARIANTS = [v for v in VARIANTS if v.kernel not in SMALL or v in LOSS_MOVES]
VARIANTS += [v for v in PLAIN if v.kernel not in SMALL]
VARIANTS += aot.entries_variants((90,), (True,))
GROUPED = {"widths": (4096,), "norms": (True,)}
VARIANTS += aot.grouped_variants((90,), (torch.bfloat16,), (16, 128), **GROUPED)
VARIANTS += aot.grouped_variants((90,), (torch.float32,), (64,), **GROUPED)
VARIANTS += aot.grouped_variants((100,), (torch.float16,), (128,), **GROUPED, wide=(True,))
# a rank and a vocabulary that 16 does not divide, and a call with few tokens
OTHER = {"architectures": (90,), "dtypes": (torch.bfloat16,)}
VARIANTS += aot.steer_variants(**OTHER, ranks=(16,), widths=(4096,), norms=(True,), even=False)
VARIANTS += aot.steer_variants(**OTHER, ranks=(16,), widths=(4096,), norms=(True,), few_tokens=True)
VARIANTS += aot.grouped_variants(**OTHER, ranks=(16,), **GROUPED, even=False, wide=(True,))
VARIANTS += [
    v for v in aot.cross_entropy_variants(**OTHER, widths=(16384,), even=False)
    if v.kernel not in SMALL
]  # fmt: skip


def test_the_part_is_small() -> None:
    assert len(VARIANTS) <= 80 and {v.architecture for v in VARIANTS} == {80, 90, 100}
    assert len(aot.whole_table()) > len(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_no_spills_and_shared_memory_within_the_part(variant: aot.Variant) -> None:
    from triton.backends.nvidia.compiler import get_ptxas

    if not Path(get_ptxas(variant.architecture).path).exists():
        pytest.skip("this Triton has no ptxas")
    resources = aot.kernel_resources(variant)
    assert resources.registers > 16
    assert aot.faults(variant, resources) == []


def test_what_may_spill_is_little_and_said() -> None:
    """On sm_90, which the project is measured on, nothing may spill."""
    assert all(0 < size <= 64 for size in aot.TOLERATED.values())
    assert not [key for key in aot.TOLERATED if key[2] == 90]


def test_faults_are_seen() -> None:
    variant = VARIANTS[0]
    assert aot.faults(variant, aot.KernelResources(255, 8, 1000)) == ["spills 8 bytes"]
    (fault,) = aot.faults(variant, aot.KernelResources(64, 0, 300 * 1024))
    assert "307200 bytes of shared memory" in fault


def test_a_barrier_stands_between_the_logits_and_the_gradient_on_top_of_them() -> None:
    """Another warp may be behind: its logits must be in registers when the first is overwritten."""
    (variant, *_) = aot.cross_entropy_variants((90,), (torch.bfloat16,), (16384,), (False,))
    lines = aot.build(variant).asm["ptx"].splitlines()
    stores = [i for i, line in enumerate(lines) if "st.global" in line and "b16" not in line]
    # the gradient is stored last, in vectors; the results of a row are scalars before it
    last = max(stores)
    before = lines[:last]
    barrier = max(i for i, line in enumerate(before) if "bar.sync" in line)
    load = max(i for i, line in enumerate(before) if "ld.global" in line)
    label = max(i for i, line in enumerate(before) if line.startswith("$L__BB"))
    assert label < load < barrier < last, "in the loop, in this order"


@pytest.mark.parametrize("kernel", ["steer_token", "steer_block"])
@pytest.mark.parametrize("norm_preserving", [False, True])
def test_a_barrier_stands_before_a_state_is_overwritten(kernel: str, norm_preserving: bool) -> None:
    """Another warp may still read it: for the norm, or its part of the same columns."""
    found = aot.grouped_variants((90,), (torch.bfloat16,), (16,), (4096,), (norm_preserving,))
    variant = next(one for one in found if one.kernel == kernel)
    lines = aot.build(variant).asm["ptx"].splitlines()
    stores = [i for i, line in enumerate(lines) if "st.global" in line]
    last_load = max(i for i, line in enumerate(lines[: stores[0]]) if _reads(line))
    loop = max(i for i, line in enumerate(lines[: stores[0]]) if line.startswith("$L__BB"))
    barrier = max(i for i, line in enumerate(lines[: stores[0]]) if "bar.sync" in line)
    # numbers that were loaded ahead arrive with the wait, and the barrier is behind it
    assert loop < last_load < barrier < stores[0]
    assert not [line for line in lines[barrier : stores[-1]] if _reads(line)]


def _reads(line: str) -> bool:
    return "ld.global" in line or "cp.async.wait_group" in line


def test_the_parameters_of_a_token_are_loaded_ahead() -> None:
    """In all three passes: a decoding step waits for each of its layers."""
    (variant, _) = aot.grouped_variants((90,), (torch.bfloat16,), (16,), (4096,), (True,))
    assert variant.kernel == "steer_token"
    text = aot.build(variant).asm["ptx"]
    # parameters, hidden and residual, of two steps, in each of the passes
    assert text.count("cp.async.wait_group") >= 3 and text.count("cp.async.c") >= 3 * 3 * 2


@pytest.mark.parametrize("kernel", ["cross_entropy_rows", "steer_forward"])
def test_loads_ahead_of_a_sweep_are_asynchronous_and_spill_nothing(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No number of stages of the launch has this effect: benchmarks/suspicions.py."""
    width, padded = (4096, 16) if kernel == "steer_forward" else (16384, 0)
    found = {
        "cross_entropy_rows": aot.cross_entropy_variants((90,), (torch.bfloat16,), (width,)),
        "steer_forward": aot.steer_variants((90,), (torch.bfloat16,), (padded,), (width,)),
    }[kernel]
    variant = next(one for one in found if one.kernel == kernel)
    plain = aot.build(variant).asm["ptx"].count("cp.async.c")
    row = {k: v for k, v in variant.options.items() if k not in ("STAGES", "enable_fp_fusion")}
    monkeypatch.setitem(table.TUNED, (kernel, 90, "bfloat16", padded, width), {**row, "STAGES": 3})
    table._configured.cache_clear()
    try:
        resources = aot.kernel_resources(variant)
        ahead = aot.build(variant).asm["ptx"].count("cp.async.c")
    finally:
        monkeypatch.undo()
        table._configured.cache_clear()
    assert aot.faults(variant, resources) == [] and ahead > plain
    assert plain == 0 or kernel == "steer_forward"  # whose parameters feed products


def test_rows_of_any_vocabulary_are_read_and_written_in_vectors() -> None:
    """The vocabulary is any number; the rows of the buffer have an aligned stride."""
    (variant, *_) = aot.cross_entropy_variants(
        (90,), (torch.bfloat16,), (16384,), (False,), (False,), even=False
    )
    flags = tuple((name, name == "GRADIENT") for name, _ in variant.flags)
    lines = aot.build(replace(variant, flags=flags)).asm["ptx"].splitlines()
    loads = [line for line in lines if "ld.global" in line]
    # two sweeps, each with two loads of four per thread
    assert sum("v4" in line for line in loads) >= 2 * 2
    assert sum("v4" in line for line in lines if "st.global" in line) >= 1
    assert sum("v4" not in line for line in loads) <= 6  # per row: target, factors, flags
