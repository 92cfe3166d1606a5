"""The tests for a GPU, rehearsed on a CPU: every line of them runs, at small sizes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "gpu"


@pytest.mark.parametrize(
    ("name", "least", "skipped"),
    [
        ("test_gpu_operators.py", 80, 0),
        ("test_gpu_decode.py", 25, 6),
    ],  # no streams, GPU memory, tiles
)
def test_all_of_them_run(name: str, least: int, skipped: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / name)],
        env=os.environ | {"DIVE_REHEARSE_GPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    left = re.search(r"(\d+) skipped", done.stdout)
    assert passed is not None and int(passed[1]) > least
    assert (int(left[1]) if left else 0) == skipped
