"""A backbone spread over devices, as `device_map` leaves it, on a machine with one."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no private device for Python",
)
def test_work_over_two_devices_meets_no_tensor_of_the_other(tiny_llama):
    """Adapter parameters, gradients, normalisers, loss, and what explain reads, are on the right
    devices."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "pretend_devices.py"), str(tiny_llama)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("ok") == 20
