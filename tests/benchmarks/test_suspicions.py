"""benchmarks/suspicions.py: its verdicts, and every way of it at toy size on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_interpreter import need_an_interpreter

pytest.importorskip("triton", reason="the kernels are Triton's")

from benchmarks import suspicions
from dive.kernels import launch_table as table
from dive.kernels import tuned

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("ratios", "want"),
    [
        ({"b": [0.9, 0.85, 0.95]}, "take b"),
        ({"b": [0.9, 0.85, 0.95], "c": [0.8, 0.7, 0.97]}, "take c"),
        ({"b": [0.99, 0.97, 1.01]}, "undecided"),  # the interval does not tell by how much
        ({"b": [0.99, 0.981, 1.0]}, "keep A"),  # faster, but not worth a change
        ({"b": [1.2, 1.1, 1.3]}, "keep A"),
    ],
)
def test_the_interval_decides(ratios: dict[str, list[float]], want: str) -> None:
    assert suspicions.verdict(ratios) == want


def test_rows_are_in_the_table_while_a_way_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspicions.tune.launch_table, "_capability", lambda _: 90)
    key = ("steer_forward", 90, "bfloat16", 16, 4096)

    def seen() -> tuple[object, int]:
        options = table.configuration(key[0], 90, suspicions.DTYPE, 16, 4096)
        host = table.host(key[0], 90, suspicions.DTYPE, 16, 4096)
        return options["STAGES"], host["casts"]

    default = seen()
    rows = {"steer_forward": {"STAGES": 3, "casts": 0}}
    before = dict(tuned.TUNED)
    try:
        changed = suspicions.taking(rows, seen, 4096, 16)
        plain = suspicions.taking({}, seen, 4096, 16)
        assert [changed(), plain(), changed()] == [(3, 0), default, (3, 0)] != [default] * 3
        row = table.configuration(key[0], 90, suspicions.DTYPE, 16, 4096)
    finally:
        suspicions.forget()
    assert seen() == default == (None, 1) and before == tuned.TUNED
    assert row == table.configuration(key[0], 90, suspicions.DTYPE, 16, 4096) | {"STAGES": 3}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # an interpreter runs every program
def test_every_way_runs_at_toy_size(tmp_path: Path) -> None:
    need_an_interpreter()
    out = tmp_path / "found.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.suspicions", "--seconds", "3600", "--out", out],
        cwd=ROOT,
        env=os.environ | {"DIVE_BENCH_TOY": "1", "DIVE_COMMIT": "toy", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = {one["suspicion"]: one for one in map(json.loads, out.read_text().splitlines())}
    assert list(found) == list(suspicions.SUSPICIONS)
    for one in found.values():
        ways = len(one["us"])
        assert ways >= 3 and one["verdict"] == f"ran {ways} ways; toy sizes decide nothing"
        assert all(far <= suspicions.FAR for far in one["off"].values())
