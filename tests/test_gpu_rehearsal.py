"""The GPU tests of the operators, rehearsed on a CPU: every line of them runs, at small sizes."""

import os
import re
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parent / "gpu" / "test_gpu_operators.py"


def test_all_of_them_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FILE)],
        env=os.environ | {"DIVE_REHEARSE_GPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 80 and "skipped" not in done.stdout
