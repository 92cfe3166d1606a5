"""The Triton kernels compiled ahead of time, without a GPU: no spills, shared memory within bounds.

A part of the table; `make aot` builds all of it.
"""

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled under the interpreter", allow_module_level=True)

from dive.kernels import aot

LARGEST = [v for v in aot.steer_variants((80, 100), (torch.bfloat16,), (16, 128), (4096,), (True,))]
HOPPER = list(aot.steer_variants((90,), (torch.bfloat16, torch.float32), (16, 64, 128), (4096,)))
# the reduction is the same code for every dtype of the stream
VARIANTS = [v for v in (*HOPPER, *LARGEST) if v.kernel != "steer_reduce"]


def test_the_part_is_small() -> None:
    assert len(VARIANTS) <= 60 and {v.architecture for v in VARIANTS} == {80, 90, 100}
    assert len(aot.whole_table()) > len(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_no_spills_and_shared_memory_within_the_part(variant: aot.Variant) -> None:
    if not Path(aot.ptxas(variant.architecture)).exists():
        pytest.skip("this Triton has no ptxas")
    report = aot.inspect(variant)
    assert report.registers > 16
    assert aot.faults(variant, report) == []


def test_faults_are_seen() -> None:
    variant = VARIANTS[0]
    assert aot.faults(variant, aot.Report(255, 8, 1000)) == ["spills 8 bytes"]
    (fault,) = aot.faults(variant, aot.Report(64, 0, 300 * 1024))
    assert "307200 bytes of shared memory" in fault
