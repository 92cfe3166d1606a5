"""Runs the tests of the Triton sources under Triton's interpreter, in their own process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from triton_interpreter import need_an_interpreter

FOLDER = Path(__file__).parent
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name",
    [
        "test_kernels_steer.py",
        "test_kernels_steer_grouped.py",
        "test_kernels_cross_entropy.py",
        "test_kernels_strides.py",
    ],
)
def test_under_the_interpreter(name: str) -> None:
    need_an_interpreter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / name)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 20 and "skipped" not in done.stdout


@pytest.mark.slow
def test_the_tuning_stage_runs_at_toy_size(tmp_path: Path) -> None:
    """So that no GPU time is lost to a typo."""
    need_an_interpreter()
    table = ROOT / "kernels" / "tuned.py"
    before = table.read_bytes()
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", "tune"],
        env=os.environ
        | {
            "DIVE_BENCH_TOY": "1",
            "DIVE_COMMIT": "toy",
            "OUT": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert table.read_bytes() == before
    found = json.loads((tmp_path / "cpu-tune.json").read_text())
    assert found["complete"] and len(found["cases"]) == 6
    # the table is among the results, ready to be copied to kernels/
    tuned: dict[str, Any] = {}
    exec((tmp_path / "tuned.py").read_text(), tuned)
    better = {tuple(case["key"]): case["row"] for case in found["cases"] if case["row"]}
    assert tuned["TUNED"] == better
