"""The script of the first minutes on a GPU: at toy size, and with every kind of failure."""

import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import first_contact, processes
from benchmarks.first_contact import Contact, Part

ROOT = Path(__file__).parents[2]
FAULTS = Part(20, steps="first_faults")


def script(out: Path, *arguments: str, **more: str) -> tuple[int, str, dict[str, Any]]:
    """Returns exit status, output, and the summary in the archive."""
    environment = os.environ | {"OUT": str(out), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.first_contact", *arguments],
        cwd=ROOT, env=environment | {"DIVE_COMMIT": "toy"} | more, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert [path.name for path in out.iterdir()] == ["-".join(arguments) + ".tar.gz"], done.stdout
    return done.returncode, done.stdout, summary_in(out / ("-".join(arguments) + ".tar.gz"))


def summary_in(archive: Path) -> dict[str, Any]:
    with tarfile.open(archive) as packed:
        file = packed.extractfile(f"{archive.name.removesuffix('.tar.gz')}/summary.json")
        assert file is not None
        found: dict[str, Any] = json.load(file)
    return found


@pytest.mark.timeout(300)
def test_it_runs_at_toy_size(tmp_path: Path) -> None:
    status, said, summary = script(tmp_path, "smoke", DIVE_BENCH_TOY="1")
    assert status == 0, said
    steps = summary["parts"]["smoke"]["steps"]
    assert len(steps) == 10 and all(one["state"] == "passed" for one in steps.values()), said
    assert steps["machine"]["found"]["commit"] == "toy" and "toy" in said
    assert 0 < steps["steer"]["found"]["off"]["torch.bfloat16"]["d h"] < 0.03
    assert "dive._C" in steps["decode, batch 8"]["summary"]


ALL_STEPS = """
import json
from importlib import import_module
from benchmarks.first.steps import outcome
found = {}
for part in ("loss", "steer", "decode"):
    for name, step in import_module(f"benchmarks.first.{part}").STEPS.items():
        found[f"{part}: {name}"] = outcome(step, None)
print(json.dumps(found))
"""


@pytest.mark.timeout(300)
def test_every_look_runs_at_toy_size() -> None:
    """In one process, as four would spend most of their time on imports."""
    toy = {"DIVE_BENCH_TOY": "1", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALL_STEPS], cwd=ROOT, env=os.environ | toy, text=True, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout.splitlines()[-1])
    bad = {name: one["summary"] for name, one in steps.items() if one["state"] != "passed"}
    # one may lack Triton's interpreter here
    assert set(bad) <= {"steer: rows of the table"}, done.stderr
    assert len(steps) == 14
    assert {"floor", "default", "256 MiB"} <= set(steps["loss: all live"]["found"]["ms"])
    assert {"called", "narrow, replayed"} <= set(steps["steer: forward"]["found"]["ms"])
    assert steps["steer: its kernels"]["found"]["kernels"]
    assert set(steps["decode: batch 8"]["found"]["share_of_floor"]) == {
        "session", "session, steered",
    }  # fmt: skip


@pytest.mark.timeout(120)
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    status, said, summary = script(tmp_path, "smoke", "sanitize")
    parts = summary["parts"]
    assert status == 0 and "no GPU is visible to torch" in said
    assert {one["state"] for one in parts["smoke"]["steps"].values()} == {"not run"}
    assert parts["sanitize"]["summary"] == "did not pass: machine"


@pytest.fixture
def contact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Contact:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "helpers"))
    monkeypatch.setenv("FAULTS", str(tmp_path / "child"))
    monkeypatch.setattr(processes, "_GRACE", 0.3)
    monkeypatch.setattr(first_contact, "_LEAST", 1)
    (tmp_path / "work").mkdir()
    return Contact("x", tmp_path / "work", tmp_path / "out" / "x.tar.gz", 60)


def test_a_fault_costs_its_step_alone(contact: Contact, tmp_path: Path) -> None:
    contact.part("smoke", FAULTS, 30)
    contact.part("gated", Part(5, steps="first_faults", needs=("good", "raises")), 5)
    smoke, gated = contact.results["smoke"], contact.results["gated"]
    assert {name: one["state"] for name, one in smoke["steps"].items()} == {
        "good": "passed", "raises": "failed", "not here": "not run", "segfaults": "failed",
        "hangs": "failed", "needs": "passed", "after": "passed",
    }  # fmt: skip
    words = {name: one["summary"] for name, one in smoke["steps"].items()}
    assert words["raises"] == "ValueError: an operator that fails"
    assert words["segfaults"] == "SIGSEGV" and "took longer than 0.5 s" in words["hangs"]
    assert smoke["steps"]["good"]["found"]["step"] == 3
    assert smoke["state"] == "failed" and smoke["summary"] == "3 passed, 3 failed, 1 not run"
    assert gated["state"] == "not run" and gated["summary"] == "did not pass: raises"
    assert "ValueError: an operator" in contact.table()
    assert "test_first_contact" not in (contact.work / "smoke.log").read_text()
    assert summary_in(contact.archive)["parts"]["gated"]["state"] == "not run"
    assert is_gone(int((tmp_path / "child").read_text()))


def test_a_part_that_hangs_costs_its_time_alone(
    contact: Contact, monkeypatch: pytest.MonkeyPatch
) -> None:
    contact.environment["FAULTS_AT_ONCE"] = "1"
    start = time.monotonic()
    contact.part("hangs", FAULTS, 1.5)
    assert time.monotonic() - start < 10
    assert contact.results["hangs"]["summary"].startswith("out of time")
    # no time for more: reported, and not begun
    contact.end = time.monotonic()
    contact.part("late", FAULTS, 10)
    assert contact.results["late"]["summary"] == "no time was left"
    assert list(summary_in(contact.archive)["parts"]) == ["hangs", "late"]


def test_a_stage_and_suspicions_that_are_not_there_say_so(
    contact: Contact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_contact, "SUSPICIONS", "benchmarks/nothing.py")
    contact.part("ab", Part(5), 5)
    assert contact.results["ab"]["summary"] == "benchmarks/nothing.py is not there"
    contact.part("odd", Part(30, stage="nothing"), 30)
    odd = contact.results["odd"]
    assert odd["state"] == "failed" and odd["summary"].startswith("exit status 2: ")


def test_steps_are_held_to_what_passed(contact: Contact) -> None:
    contact.results["smoke"] = {"state": "failed", "steps": {"steer": {"state": "passed"}}}
    lines = contact.work / "gated.jsonl"
    done = [name for name in ("good", "raises", "not here", "segfaults", "hangs")]
    lines.write_text("".join(json.dumps({"step": s, "state": "passed"}) + "\n" for s in done))
    contact.part("gated", FAULTS, 20)
    steps = contact.results["gated"]["steps"]
    assert steps["needs"]["summary"] == "did not pass: decode"
    assert steps["after"]["state"] == "passed"


def test_what_the_machine_lacks_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_contact, "ROOT", tmp_path)
    monkeypatch.setenv("HOME", "")
    for folder in ("wheels", "work"):
        (tmp_path / folder).mkdir()
    for name in ("pure-1.0-py3-none-any.whl", "native-1.0-cp312-cp312-linux_x86_64.whl"):
        with zipfile.ZipFile(tmp_path / "wheels" / name, "w") as wheel:
            wheel.writestr(f"{name.partition('-')[0]}.py", "")
    found = first_contact.environment(tmp_path / "work")
    paths = [Path(path) for path in found["PYTHONPATH"].split(os.pathsep)]
    assert paths[:2] == [tmp_path, tmp_path / "work" / "wheels"]
    assert [path.name for path in paths[1].iterdir()] == ["pure.py"]
    assert Path(found["HOME"]).is_dir() and Path(found["HOME"]).parent == tmp_path / "work"


def test_nothing_is_left_of_what_was_started(tmp_path: Path) -> None:
    """Also what it started: a nested process group is ended by the process that made it."""
    inner = f"sleep 600 & echo $! > {tmp_path}/pid; wait"
    outer = (
        "from pathlib import Path; from benchmarks.processes import *; end_with_children(); "
        f"bounded(['bash', '-c', {inner!r}], 600, Path({str(tmp_path / 'inner')!r}), cwd=Path('/'))"
    )
    log = tmp_path / "log"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    status = processes.bounded([sys.executable, "-c", outer], 3, log, cwd=tmp_path, env=env)
    assert status == processes.LATE
    assert is_gone(int((tmp_path / "pid").read_text()))
    assert processes.bounded(["bash", "-c", "exit 3"], 5, log, cwd=tmp_path) == 3
    assert processes.bounded(["bash", "-c", "kill -9 $$"], 5, log, cwd=tmp_path) == 128 + 9
    assert processes.bounded(["no such program"], 5, log, cwd=tmp_path) == 127
    assert "no such program" in log.read_text()


def is_gone(pid: int) -> bool:
    """Whether a process is gone, or will be within a moment."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_what_is_asked_for() -> None:
    assert first_contact.asked_for(["sanitizer", "smoke", "loss"]) == ["smoke", "sanitize", "loss"]
    with pytest.raises(SystemExit, match="nothing: want some of first"):
        first_contact.asked_for(["first", "nothing"])
    assert first_contact.limits(["loss=30"]) == {"loss": 30}
    with pytest.raises(SystemExit, match="loss=soon: want a number of seconds"):
        first_contact.limits(["loss=soon"])
    for text in ("all=30", "loss", "loss="):
        with pytest.raises(SystemExit, match=f"--limit {text}: want PART=VALUE"):
            first_contact.limits([text])
    assert first_contact.of_part("loss-file=a b=c", "--case") == ("loss-file", "a b=c")


def test_the_first_set_fits_into_its_call() -> None:
    """They fit into a call of 480 s; the steps that a part needs are steps of smoke."""
    of_first = [first_contact.PARTS[part] for part in first_contact.SETS["first"]]
    assert sum(part.seconds for part in of_first) <= first_contact.SECONDS < 480
    source = (ROOT / "benchmarks" / "first" / "smoke.py").read_text(encoding="utf-8")
    for part in first_contact.PARTS.values():
        assert all(f'"{name}"' in source for name in part.needs)
