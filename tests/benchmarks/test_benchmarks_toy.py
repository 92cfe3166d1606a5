"""Every stage of benchmarks/gpu.sh at toy size, so that no GPU time is lost to a typo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {  # the files of a stage, and what it must print on a CPU
    "cpu-build": {"state": "passed", "complete": True},
    "cpu-test": {"state": "not run", "complete": False},
    "cpu-peers": {"complete": True},
    "cpu-cross-entropy": {"complete": True},
    "cpu-steer": {"complete": True},
    "cpu-steer-grouped": {"complete": True},
    "cpu-decode-pairs": {"complete": True},
    "cpu-distill-run": {"complete": True},
    "cpu-sanitize": {"state": "not run", "complete": False},
}


def gpu_sh(out: Path, *stages: str) -> str:
    environment = os.environ | {
        "DIVE_BENCH_TOY": "1",
        "DIVE_COMMIT": "toy",
        "OUT": str(out),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHON": sys.executable,
    }
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", *stages],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_stages(tmp_path: Path) -> None:
    results = ROOT / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    gpu_sh(tmp_path, "all", "--seconds", "480")
    assert {path.stem for path in tmp_path.glob("*.json")} == set(FILES)
    for name, wanted in FILES.items():
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert {key: found.get(key) for key in wanted} == wanted, name
        assert all(
            found.get(key) for key in ("device", "torch", "versions", "date", "time", "what")
        )
        assert found["commit"] == "toy"
    ways = json.loads((tmp_path / "cpu-decode-pairs.json").read_text())["cases"]
    assert not [way["not_run"] for way in ways if "not_run" in way]
    assert {way["way"] for way in ways} >= {"session, 4 adapters", "compiled loop"}
    assert all(plan for way in ways for plan in way["plan"].values())
    again = gpu_sh(tmp_path, "loss", "build")
    # a build is specific to a machine, whatever files were copied to it
    assert again.count("of this commit and complete") == 1 and "build: passed" in again
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before
    page = subprocess.run(
        [sys.executable, "-c", "import sys; from pathlib import Path\n"
         "from benchmarks.render_page import render_page\n"
         "print(render_page(Path(sys.argv[1])))", tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "torch core, none, chunked" in page and "Llama-3-8B, batch 1: session, steered" in page
