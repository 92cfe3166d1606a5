"""`dive generate --ray` on a session of Ray's own, with tiny engines on a CPU."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray_faults
import torch
from command_line import call, rows
from tiny import save_studies

import dive
from dive.cli import engines
from dive.errors import DiveError
from dive.files.json_lines import JsonlWriter
from dive.generation import ray_actor, ray_cluster, ray_map

ray = pytest.importorskip("ray", reason="ray is not installed: make test-vllm has it")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
COUNT = 12
ROOT = Path(__file__).parents[2]
PYTHONPATH = ":".join(map(str, (ROOT, ROOT / "tests" / "models", ROOT / "tests" / "helpers")))


@pytest.fixture(scope="module")
def session():
    """A session on this machine for all tests; its folder, whose path must be short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("RAY_worker_niceness", "0")  # or the actors wait for all that runs beside
        patch.setenv("PYTHONPATH", PYTHONPATH)  # with ray_faults, for the actors
        with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
            ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False,
                     object_store_memory=100_000_000, _temp_dir=folder)  # fmt: skip
            yield Path(folder)
            ray.shutdown()


@pytest.fixture(scope="module")
def inputs(tiny_llava, tmp_path_factory):
    """A folder with a model, an adapter, studies, and what one process writes of them."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(tiny_llava, folder / "model")
    save_studies(folder / "studies", COUNT)
    save_studies(folder / "shown", 1)
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    for seed, name in enumerate(("adapter", "other")):
        torch.manual_seed(seed)
        dive.SteeringAdapter(dive.SteeringConfig(rank=2), backbone).save_pretrained(folder / name)
    call(*command(folder, folder / "wanted.jsonl"))
    return folder


@pytest.fixture
def folder(inputs, session, tmp_path, monkeypatch):
    """A copy of it, whose engines fail as `fail_by` says."""
    shutil.copytree(inputs, tmp_path / "own")
    monkeypatch.setattr(engines, "open_engine", ray_faults.open_engine)
    monkeypatch.setattr(engines, "read_inputs", ray_faults.read_inputs)
    return tmp_path / "own"


def command(folder, out, *more):
    return [
        "generate", "--backbone", folder / "model", "--adapter", folder / "adapter",
        "--studies", folder / "studies" / "studies.jsonl", "--out", out,
        "--demonstrations", folder / "shown" / "studies.jsonl", "--device", "cpu",
        "--max-new-tokens", 6, "--batch-size", 2, *more,
    ]  # fmt: skip


def over_ray(folder, *more, actors=2):
    return command(folder, folder / "out.jsonl", "--ray", "--actors", actors, *more)


def fail_by(folder, *lines):
    (folder / "model" / "faults.txt").write_text("".join(line + "\n" for line in lines))


def timeless(path):
    return [{**row, "seconds": None} for row in rows(path)]


def wanted(folder, but=(), inputs=None):
    """What one process wrote; the images' paths are those of this folder."""
    text = (folder / "wanted.jsonl").read_text()
    if inputs is not None:
        text = text.replace(str(inputs), str(folder))
    found = [json.loads(line) for line in text.splitlines()]
    return [{**row, "seconds": None} for row in found if row["id"] not in but]


def finished(folder, inputs, but=()):
    assert timeless(folder / "out.jsonl") == wanted(folder, but, inputs)
    assert not list(folder.glob("*.partial*"))


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pids, seconds=60.0):
    ends = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < ends:
        time.sleep(0.1)
    return not any(map(alive, pids))


class Watched(logging.Handler):
    """Calls a function with the number of each actor's process, when it begins a group."""

    def __init__(self, begins):
        super().__init__(logging.INFO)
        self._begins = begins
        self.pids, self.deaths = [], 0

    def emit(self, record):
        said = record.getMessage()
        self.deaths += said.startswith("an actor died")
        if found := re.match(r"process (\d+) on ", said):
            self.pids.append(int(found[1]))
            self._begins(int(found[1]))


@pytest.fixture
def watch(caplog):
    """A function that adds such a handler."""
    logger = logging.getLogger("dive.generation.ray_map")
    added = []

    def add(begins=lambda pid: None):
        caplog.set_level(logging.INFO, logger=logger.name)
        added.append(Watched(begins))
        logger.addHandler(added[-1])
        return added[-1]

    yield add
    for one in added:
        logger.removeHandler(one)


def test_two_actors_write_what_one_process_writes(folder, inputs, watch, caplog):
    fail_by(folder, "await 2", "slow 0.2")
    seen = watch()
    result = call(*over_ray(folder))
    finished(folder, inputs)
    assert len(set(seen.pids)) == 2 and os.getpid() not in seen.pids
    assert "12 reports in" in result.stderr
    assert ray_faults.noted(folder / "model").count("closed") == 2
    # an actor's warnings come out here, each once
    assert caplog.text.count("demonstration 'study-00' has the same id and is left out") == 1
    assert gone(set(seen.pids))


def test_an_actor_that_is_killed_loses_and_repeats_nothing(folder, inputs, watch, monkeypatch):
    fail_by(folder, "await 2", "slow 0.2")
    seen, append, names = watch(), JsonlWriter.append, []

    def kills_after_two(self, row):
        append(self, row)
        names.append(row["id"])
        if len(names) == 2:
            os.kill(seen.pids[0], signal.SIGKILL)

    monkeypatch.setattr(JsonlWriter, "append", kills_after_two)
    call(*over_ray(folder))
    assert seen.deaths == 1
    assert len(names) == len(set(names)) == COUNT
    # what it had begun was begun again elsewhere
    assert len(set(seen.pids)) >= 2
    finished(folder, inputs)


@pytest.mark.slow
def test_a_study_that_kills_once_is_written(folder, inputs, watch):
    fail_by(folder, "once study-04")
    seen = watch()
    call(*over_ray(folder))
    assert seen.deaths == 1
    finished(folder, inputs)


@pytest.mark.slow
def test_a_study_that_always_kills_is_named_and_left_out(folder, inputs, watch):
    fail_by(folder, "kill study-04")
    seen = watch()
    result = call(*over_ray(folder, "--on-error", "skip"))
    assert seen.deaths == 3 == ray_faults.noted(folder / "model").count("kills-study-04")
    finished(folder, inputs, but=["study-04"])
    (entry,) = rows(folder / "out.skipped.jsonl")
    assert entry["id"] == "study-04" and entry["source"] == "studies.jsonl:5"
    assert "its actor died 3 times while the report was written" in entry["reason"]
    assert "1 skipped" in result.stderr


@pytest.mark.slow
def test_a_study_that_always_kills_ends_the_run(folder, inputs):
    fail_by(folder, "kill study-04")
    with pytest.raises(DiveError, match=r"studies.jsonl:5: study 'study-04': its actor died 3"):
        call(*over_ray(folder))
    # the others are kept, and one process goes on with them
    kept = {row["id"] for row in map(json.loads, (folder / "out.jsonl.partial").open())}
    assert kept and "study-04" not in kept
    (folder / "model" / "faults.txt").unlink()
    call(*command(folder, folder / "out.jsonl"))
    finished(folder, inputs)


@pytest.mark.parametrize("actors", [1, 2])
def test_an_unreadable_film(folder, inputs, actors):
    path = folder / "studies" / "images" / "03_frontal.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DiveError, match=r"studies.jsonl:4: study 'study-03': .*\(1 of 1\)"):
        call(*over_ray(folder, actors=actors))
    call(*over_ray(folder, "--on-error", "skip", actors=actors))
    finished(folder, inputs, but=["study-03"])
    (entry,) = rows(folder / "out.skipped.jsonl")
    assert entry["id"] == "study-03" and entry["source"] == "studies.jsonl:4"


def test_an_engine_that_cannot_be_opened_says_so_once(folder):
    fail_by(folder, "refuse")
    with pytest.raises(DiveError, match="^the engine is closed today$"):
        call(*over_ray(folder, "--on-error", "skip"))
    assert 1 <= ray_faults.noted(folder / "model").count("opened") <= 2
    assert not (folder / "out.jsonl").exists()


@pytest.mark.slow
def test_actors_that_die_while_they_open_are_no_storm(folder):
    fail_by(folder, "die")
    with pytest.raises(DiveError, match="^3 actors died one after the other before their engine"):
        call(*over_ray(folder, "--on-error", "skip", actors=1))
    assert ray_faults.noted(folder / "model").count("opened") == 3


@pytest.mark.slow
def test_another_adapter_on_a_node_is_refused(folder):
    fail_by(folder, f"adapter {folder / 'other'}")
    # the driver reads the right one
    engines.read_inputs, own = ray_faults.read_inputs, ray_faults.REAL[1]
    with pytest.raises(DiveError, match=r"has other files or packages .*: adapter \(parameters\);"):
        call_with_own_inputs(own, over_ray(folder, actors=1))


def call_with_own_inputs(own, words):
    """Calls the command with `own` as its `read_inputs`; the actors have the failing one."""
    module = sys.modules["dive.cli.generate"]
    before = module.read_inputs
    module.read_inputs = own
    try:
        return call(*words)
    finally:
        module.read_inputs = before


@pytest.mark.slow
def test_an_actors_bug_is_raised_and_in_no_log(folder, session):
    fail_by(folder, "broken")
    with pytest.raises(RuntimeError, match="ZeroDivisionError: zyxsecret"):
        call(*over_ray(folder, actors=1))
    assert leaks(session, "zyxsecret") == []


def leaks(session, *words):
    """The files of Ray's logs that hold one of these words."""
    found = [path for path in session.rglob("*") if path.is_file() and "sock" not in path.name]
    assert any(path.name.startswith("worker-") for path in found)
    return [
        path.name for path in found if any(word.encode() in path.read_bytes() for word in words)
    ]


@pytest.mark.slow
def test_nothing_private_is_in_rays_logs(folder, session, watch):
    studies = folder / "studies" / "studies.jsonl"
    (folder / "studies" / "images").rename(folder / "studies" / "zyxfolder")
    text = studies.read_text().replace("images/", "zyxfolder/")
    for word, own in (("Cough and fever", "zyxindication"), ('"p0"', '"zyxpatient"')):
        assert word in text
        text = text.replace(word, own)
    studies.write_text(text)
    (folder / "studies" / "zyxfolder" / "05_frontal.png").write_bytes(b"no film")
    fail_by(folder, "once study-04")
    seen = watch()
    call(*over_ray(folder, "--on-error", "skip"))
    assert seen.deaths == 1
    texts = [row["report"] for row in rows(folder / "out.jsonl")]
    assert len(texts) == COUNT - 1
    long = [text for text in texts if len(text) > 12]
    assert leaks(session, "zyx", *long) == []


def stop_after(count, monkeypatch, words):
    class Stop(Exception):
        pass

    append = JsonlWriter.append

    def stops(self, row):
        if len(self.done) == count:
            raise Stop
        append(self, row)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(JsonlWriter, "append", stops)
        call(*words)


@pytest.mark.slow
def test_either_way_finishes_the_others_run(folder, inputs, monkeypatch):
    stop_after(3, monkeypatch, over_ray(folder))
    stop_after(6, monkeypatch, command(folder, folder / "out.jsonl"))
    result = call(*over_ray(folder))
    assert "going on: 6 of 12 reports written before" in result.stderr
    finished(folder, inputs)


@pytest.mark.slow
def test_bare_images_keep_their_names(folder, monkeypatch):
    monkeypatch.chdir(folder / "studies" / "images")
    words = ["generate", "--backbone", folder / "model", "--device", "cpu", "--max-new-tokens", 4,
             "00_frontal.jpg", "./01_frontal.png"]  # fmt: skip
    call(*words, "--out", folder / "one.jsonl")
    call(*words, "--out", folder / "two.jsonl", "--ray", "--actors", 1)
    assert timeless(folder / "two.jsonl") == timeless(folder / "one.jsonl")


@pytest.mark.slow
def test_a_node_without_the_films_is_named(folder, inputs, monkeypatch):
    """An actor elsewhere, which does not find what is here."""
    sent = ray_actor.Sent(
        ray_actor.LeftOut("study-00", "studies.jsonl:1", "there is no image file (1 of 1)", True),
        "node-7",
    )
    studies = {one.id: one for one in dive.data.read_studies(folder / "studies/studies.jsonl")}
    options = ray_cluster.RayOptions(actors=1)
    request = dive.generation.run_request.RunRequest(str(folder / "model"), on_error="skip")
    skipped = dive.data.Skipped()
    with ray_cluster.connected(options, "cpu") as cluster:
        reports = ray_map.RayReports(cluster, request, None, {}, studies, skipped)
        with pytest.raises(
            DiveError, match="films are on this machine, and not on the node node-7"
        ):
            list(reports._act(None, sent))
        # where it is nowhere, it is the study's own fault
        (folder / "studies" / "images" / "00_frontal.jpg").unlink()
        assert list(reports._act(None, sent)) == [] and len(skipped) == 1


def driver(folder, *more):
    """The command as a process of its own, and of a session of its own, on this Ray."""
    address = ray.get_runtime_context().gcs_address
    words = over_ray(folder, "--address", address, *more)
    return subprocess.Popen(
        [sys.executable, "-m", "dive", "-v", *map(str, words)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        start_new_session=True,
        stderr=(folder / "log").open("w"),
    )


def await_lines(folder, count, process, seconds=240.0):
    """Wait until that many reports are written."""
    partial, ends = folder / "out.jsonl.partial", time.monotonic() + seconds
    while not (partial.exists() and partial.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < ends
        time.sleep(0.01)


def actors_of(folder):
    return {int(pid) for pid in re.findall(r"process (\d+) on ", (folder / "log").read_text())}


def test_a_driver_that_is_killed_is_gone_on_from(folder, inputs):
    for count in (1, 5, 9):
        process = driver(folder)
        await_lines(folder, count, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        pids = actors_of(folder)
        assert pids and gone(pids)
        kept = (folder / "out.jsonl.partial").read_bytes().count(b"\n")
        assert count <= kept < COUNT
    result = call(*over_ray(folder))
    assert f"going on: {kept} of 12 reports written before" in result.stderr
    finished(folder, inputs)


@pytest.mark.slow
def test_an_interrupted_driver_ends_its_actors(folder, inputs):
    process = driver(folder)
    await_lines(folder, 1, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    said = (folder / "log").read_text()
    assert "interrupted; the same command goes on where it stopped" in said
    assert "Traceback" not in said
    assert gone(actors_of(folder))
    call(*over_ray(folder))
    finished(folder, inputs)
