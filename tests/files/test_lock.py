"""Locks of outputs (`dive.files.lock`): one process at a time."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dive
from dive.cli import app
from dive.errors import DiveError
from dive.files import lock
from dive.files.json_lines import JsonlWriter
from dive.files.lock import hold_file, hold_folder

HOLDS = """
import sys, os
from dive.files.lock import hold_file, hold_folder
sys.argv = ["/opt/bin/dive", "--verbose", "generate", "--studies", "p10000032.jsonl"]
held = (hold_folder if os.path.isdir({path!r}) else hold_file)({path!r})
{then}
print("held", flush=True)
sys.stdin.read()
"""


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def other():
    """other(path): a process that holds it until the end of the test, or its death."""
    started = []

    def start(path: Path, then: str = "") -> subprocess.Popen:
        program = HOLDS.format(path=str(path), then=then)
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        started.append(process)
        process.said = process.stdout.readline().split()
        assert process.said[-1] == "held"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_every_command_is_named():
    commands = {one.name or one.callback.__name__ for one in app.registered_commands}
    assert commands | {one.name for one in app.registered_groups} == lock._COMMANDS


def test_who_holds_it_and_since_when_is_said_and_a_kill_releases_it(other, tmp_path):
    path = tmp_path / "reports.jsonl"
    process = other(path)
    with pytest.raises(DiveError) as caught:
        JsonlWriter(path)
    said = str(caught.value)
    assert str(path) in said and "\n" not in said
    assert f"process {process.pid} on {socket.gethostname()} (dive generate), since 20" in said
    assert "p10000032" not in said + (tmp_path / ".reports.jsonl.lock").read_text()
    process.kill()
    process.wait()
    assert os.listdir(tmp_path) == [".reports.jsonl.lock"]  # no obstacle
    with JsonlWriter(path) as writer:
        writer.append({"id": "a"})
        writer.finish()
    assert os.listdir(tmp_path) == ["reports.jsonl"]


def test_a_child_that_outlives_its_parent_does_not_hold_on(other, tmp_path):
    child = "child = os.fork()\nif child == 0: import time; time.sleep(60); os._exit(0)\n"
    child += "print(child, end=' ')"
    process = other(tmp_path / "out", f"exec({child!r})")
    with pytest.raises(DiveError, match="is being written by process"):
        hold_file(tmp_path / "out")
    process.kill()
    process.wait()
    try:
        os.kill(int(process.said[0]), 0)
        hold_file(tmp_path / "out").release()
    finally:
        os.kill(int(process.said[0]), signal.SIGKILL)


def test_one_output_by_whatever_name_and_two_that_are_two(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jsonl").write_text("")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "also.jsonl").symlink_to("real/a.jsonl")
    with JsonlWriter("real/a.jsonl"), hold_folder("real"):
        for name in ("link/a.jsonl", "also.jsonl", "real/../link/a.jsonl", tmp_path / "also.jsonl"):
            with pytest.raises(DiveError, match="is being written by this process itself .*since"):
                JsonlWriter(name)
        with pytest.raises(DiveError, match="link is being written"):
            hold_folder("link")
        with JsonlWriter("real/b.jsonl"):
            pass
    with JsonlWriter("also.jsonl"):
        pass


def test_the_lock_of_another_output_is_none(tmp_path):
    with hold_file(tmp_path / "a") as held, pytest.raises(DiveError, match="the lock is that of"):
        JsonlWriter(tmp_path / "b", lock=held)
    with hold_file(tmp_path / "a") as held:
        with JsonlWriter(tmp_path / "a", lock=held) as writer:
            writer.finish()
        with pytest.raises(DiveError, match="is being written"):  # the caller lets it go
            hold_file(tmp_path / "a")


def test_another_thread_is_another_writer(tmp_path):
    found = []

    def writes():
        try:
            JsonlWriter(tmp_path / "a.jsonl")
        except DiveError as error:
            found.append(str(error))

    with JsonlWriter(tmp_path / "a.jsonl") as writer:
        thread = threading.Thread(target=writes)
        thread.start()
        thread.join()
        writer.append({"id": "a"})
        writer.finish()
    assert len(found) == 1 and "is being written" in found[0]


def test_a_writer_that_is_forgotten_or_never_came_to_be_holds_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    JsonlWriter(path)
    (tmp_path / "a.jsonl.partial").write_text("no row\n")
    with pytest.raises(DiveError, match="does not say how it was made"):
        JsonlWriter(path)
    with hold_file(path):
        pass
    with hold_file(tmp_path / "new" / "folder" / "a"):
        assert (tmp_path / "new" / "folder").is_dir()
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl.partial"]


def test_the_lock_of_a_file_that_was_removed_meanwhile_is_none(tmp_path):
    place = tmp_path / ".a.lock"
    handle = os.open(place, os.O_RDWR | os.O_CREAT)
    try:
        place.unlink()
        assert not lock._lock(handle, place)
        place.write_text("")
        assert not lock._lock(handle, place)
    finally:
        os.close(handle)


def test_never_two_at_once(tmp_path):
    """Three processes take it in turn, as fast as they can; each looks whether it is alone."""
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for _ in range(40):
                    with hold_file(tmp_path / "out", wait=60):
                        os.close(os.open(tmp_path / "alone", os.O_CREAT | os.O_EXCL))
                        os.unlink(tmp_path / "alone")
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_once(number, tmp_path, monkeypatch):
    def none(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "lock_descriptor", none)
    monkeypatch.setattr(lock, "_warned", set())
    with pytest.warns(UserWarning, match="has no locks") as said, hold_file(tmp_path / "a"):
        with pytest.raises(DiveError, match="this process itself"):
            hold_file(tmp_path / "a")
        hold_file(tmp_path / "b").release()
    assert len(said) == 1
    monkeypatch.setattr(lock, "lock_descriptor", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hold_file(tmp_path / "a")


def test_what_bears_the_name_of_the_lock(tmp_path):
    os.mkfifo(tmp_path / ".pipe.lock")
    (tmp_path / ".folder.lock").mkdir()
    (tmp_path / "mine").write_text("kept")
    (tmp_path / ".link.lock").symlink_to("mine")
    (tmp_path / ".nowhere.lock").symlink_to("not-there")
    said = {"pipe": "is no regular file", "folder": "is a folder", "link": "is a link"}
    for name, what in (said | {"nowhere": "is a link"}).items():
        lock_name = re.escape(f"{tmp_path}/.{name}.lock")
        with pytest.raises(DiveError, match=f"cannot write .*{name}: {lock_name} {what}, and its"):
            hold_file(tmp_path / name)
    assert (tmp_path / "mine").read_text() == "kept"


FACTS = '{"pid": 1, "host": "h", "command": "dive", "since": "2026", "job": null}\n'


@pytest.mark.parametrize(
    "text",
    ["my notes\n", "12345\n", "[1]", "{}", '{"pid": 1}', '{"pid": 1, "host": "other program"}\n',
     '{"pid": 1, not JSON\n', "\xff", FACTS + "and more", "[" * 100_000, " "],
)  # fmt: skip
def test_a_file_that_others_wrote_under_the_name_of_the_lock_stays(text, tmp_path):
    for place, hold in (
        (tmp_path / ".a.lock", lambda: hold_file(tmp_path / "a")),
        (tmp_path / ".lock", lambda: hold_folder(tmp_path)),
    ):
        place.write_text(text)
        before = place.stat()
        with pytest.raises(
            DiveError, match=re.escape(f"{place} has content that dive did not write")
        ):
            hold()
        after = place.stat()
        assert place.read_text() == text
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with pytest.raises(DiveError, match="did not write"):
        call("generate", "--backbone", "/none", "--out", tmp_path / "a", "a.png")
    assert sorted(os.listdir(tmp_path)) == [".a.lock", ".lock"]


@pytest.mark.parametrize("left", ["", FACTS, FACTS[:20], "\0" * 30])
def test_what_a_kill_or_a_full_disk_left_of_a_lock_is_no_obstacle(left, tmp_path):
    (tmp_path / ".a.lock").write_text(left)
    hold_file(tmp_path / "a").release()
    assert os.listdir(tmp_path) == []


def test_other_ranks_end_where_the_first_one_is_refused(other, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_SETTLES", 0.05)
    monkeypatch.setattr(lock, "_RANKS_WAIT", 2.0)
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "1")
    folder = tmp_path / "adapter"
    folder.mkdir()
    program = (
        "import os; os.environ.update(WORLD_SIZE='2', MASTER_ADDR='10.0.0.1', MASTER_PORT='1')"
    )
    process = other(
        folder, f"exec({program!r}); held.release(); held = hold_folder({str(folder)!r})"
    )
    before = (folder / ".lock").read_text()
    hold_folder(folder, ranks=True).release()  # the first rank of this job holds it
    assert (folder / ".lock").read_text() == before
    monkeypatch.setenv("MASTER_PORT", "2")  # another job's
    with pytest.raises(DiveError, match=f"is being written by process {process.pid}"):
        dive.distill("none", "none.jsonl", output_dir=folder)
    process.kill()
    process.wait()
    monkeypatch.setattr(lock, "_RANKS_WAIT", 0.1)
    hold_folder(folder, ranks=True)  # nobody does: the first rank is on a disk of its own


def held_by_another(tmp_path):
    out = tmp_path / "out"
    words = {
        "generate": ["--backbone", "/none", "--studies", "/none.jsonl", "--out", out],
        "distill": ["--backbone", "/none", "--studies", "/none.jsonl", "--out", out],
        "evaluate": ["--predictions", "/none", "--references", "/none", "--per-report", out],
        "bench": ["--toy", "--json", out],
        "demo": ["--out", out],
        "inspect": ["dataset", "iu-xray:/none", "--out", out],
    }
    return out, words


@pytest.mark.parametrize("command", ["generate", "distill", "evaluate", "bench", "demo", "inspect"])
def test_every_command_refuses_before_anything_is_read(command, tmp_path):
    out, words = held_by_another(tmp_path)
    with (
        (hold_folder if command in ("distill", "demo") else hold_file)(out),
        pytest.raises(DiveError, match="out is being written by this process itself"),
    ):
        call(command, *words[command])


def test_the_list_of_what_is_skipped_is_an_output_too(tmp_path):
    words = ("--backbone", "/none", "--studies", "/none.jsonl", "--out")
    with (
        hold_file(tmp_path / "a.skipped.jsonl"),
        pytest.raises(DiveError, match="a.skipped.jsonl is being written"),
    ):
        call("generate", *words, tmp_path / "a.jsonl")
    # of another name in the folder it is another
    for name in ("a.txt", "a"):
        with hold_file(tmp_path / "a.skipped.jsonl"), pytest.raises(DiveError, match="none.jsonl"):
            call("generate", *words, tmp_path / name)
    for name in ("a.skipped.jsonl", "a.skipped"):
        with pytest.raises(DiveError, match="lists what another output skips"):
            call("generate", *words, tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def adapters(tiny_llava):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    made = []
    for rank in (2, 2):
        made.append(dive.SteeringAdapter(dive.SteeringConfig(rank=rank), backbone))
        for parameter in made[-1].parameters():
            parameter.data += len(made)
    return made


def test_two_saves_into_one_folder_do_not_mix(adapters, tmp_path, monkeypatch):
    with hold_folder(tmp_path / "a"):
        thread = threading.Thread(target=adapters[0].save_pretrained, args=(tmp_path / "a",))
        thread.start()
        time.sleep(0.3)
        assert os.listdir(tmp_path / "a") == [".lock"]  # it waits
    thread.join()
    monkeypatch.setattr("dive.adapter.adapter._WAIT", 0.1)
    with hold_folder(tmp_path / "a"), pytest.raises(DiveError, match="a is being written by"):
        adapters[1].save_pretrained(tmp_path / "a")
    found = dive.SteeringAdapter.from_pretrained(tmp_path / "a").state_dict()
    assert all((found[name] == value).all() for name, value in adapters[0].state_dict().items())
    assert sorted(os.listdir(tmp_path / "a")) == ["adapter.safetensors", "adapter_config.json"]


def test_two_files_of_two_adapters_are_not_loaded(adapters, tmp_path):
    for name, adapter in zip("ab", adapters, strict=True):
        adapter.save_pretrained(tmp_path / name)
    weights = (tmp_path / "b" / "adapter.safetensors").read_bytes()
    (tmp_path / "a" / "adapter.safetensors").write_bytes(weights)
    with pytest.raises(DiveError, match="are of two adapters"):
        dive.SteeringAdapter.from_pretrained(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    del config["weights_sha256"]  # as older versions wrote it
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dive.SteeringAdapter.from_pretrained(tmp_path / "a")
