"""The tests for a GPU, rehearsed on a CPU: every line of them runs, at small sizes."""

import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "gpu"


@pytest.mark.parametrize(
    ("name", "least", "skipped"),
    [
        ("test_gpu_operators.py", 80, 0),
        ("test_gpu_steer_grouped.py", 60, 0),
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


def test_who_wants_the_gpu_alone_waits_and_lets_nobody_in_before(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("gpu_conftest", FOLDER / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    order: list[str] = []
    begun, done = threading.Event(), threading.Event()

    def enter(name: str, alone: bool) -> None:
        with module.turn(tmp_path, alone):
            order.append(name)
            begun.set()
            done.wait(10)

    def started(name: str, alone: bool) -> threading.Thread:
        thread = threading.Thread(target=enter, args=(name, alone))
        thread.start()
        return thread

    first = started("first", False)
    assert begun.wait(10)
    begun.clear()
    with module.turn(tmp_path, False):  # sharing requests are admitted at once
        order.append("second")
    single = started("single", True)
    assert not begun.wait(0.3), "not while the first is in"
    late = started("late", False)
    assert not begun.wait(0.3), "nor who came after the one that waits"
    done.set()
    for thread in (first, single, late):
        thread.join(10)
    assert order == ["first", "second", "single", "late"]
