"""Outputs that are no files, links, full disks, and files that others change meanwhile."""

import contextlib
import errno
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dive
from dive.cli import app
from dive.data import Skipped
from dive.errors import DiveError
from dive.files import atomic, disk
from dive.files.atomic import append_line, write_bytes, write_text
from dive.files.json_lines import JsonlWriter, fingerprint_before, write_jsonl
from dive.radgraph.model import _Store
from dive.training.feature_store import FeatureStore
from dive.training.progress import JsonLog
from experiments import compare_methods


@contextlib.contextmanager
def files_of_at_most(most: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


WRITERS = {
    "write_text": lambda path: write_text(path, "x"),
    "write_bytes": lambda path: write_bytes(path, b"x"),
    "write_jsonl": lambda path: write_jsonl(path, [{}]),
    "append_line": lambda path: append_line(path, "x\n"),
    "Skipped": lambda path: Skipped([{"id": "a", "source": "", "reason": ""}]).write(path),
    "JsonlWriter": JsonlWriter,
    "generate": lambda path: call("generate", "--backbone", "/none", "--out", path, "a.png"),
    "evaluate": lambda path: call(
        "evaluate", "--predictions", "/none", "--references", "/none", "--per-report", path
    ),
    "bench": lambda path: call("bench", "--toy", "--json", path),
    "compare_methods": lambda path: compare_methods.main(["--out", str(path)]),
    "inspect dataset": lambda path: call("inspect", "dataset", "iu-xray:/none", "--out", path),
}


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_no_file_is_refused_and_stays(writer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    os.mkfifo("pipe")
    listens = socket.socket(socket.AF_UNIX)
    listens.bind("socket")
    os.mkdir("folder")
    os.symlink("pipe", "to-pipe")
    os.symlink("nowhere", "to-nowhere")
    os.symlink("loop", "loop")
    before = {name: os.lstat(name).st_ino for name in os.listdir()}
    refused = {
        "pipe": "pipe is no regular file",
        "to-pipe": "to-pipe is no regular file",
        "socket": "socket is no regular file",
        "folder": "folder is a folder, want the name of a file",
        "to-nowhere": "is no regular file but a link to nowhere, which is not there",
        "loop": "cannot write loop: Too many levels of symbolic links",
    }
    with listens:
        for name, said in refused.items():
            with pytest.raises(DiveError, match=said):
                WRITERS[writer](name)
    assert {name: os.lstat(name).st_ino for name in os.listdir()} == before


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    real, link = tmp_path / "disk" / "reports.jsonl", tmp_path / "latest.jsonl"
    real.write_text("old\n")
    real.chmod(0o640)
    link.symlink_to("disk/reports.jsonl")
    with JsonlWriter(link, fingerprint={"a": 1}) as writer:
        writer.append({"id": "a"})
    assert fingerprint_before(link) == fingerprint_before(real) == {"a": 1}
    assert sorted(os.listdir(real.parent)) == [
        "reports.jsonl", "reports.jsonl.partial", "reports.jsonl.partial.run",
    ]  # fmt: skip
    with JsonlWriter(link, fingerprint={"a": 1}) as writer:
        writer.append({"id": "b"})
        writer.finish()
    assert link.is_symlink() and rows(real) == [{"id": "a"}, {"id": "b"}]
    for write in (lambda: write_text(link, "new\n"), lambda: append_line(link, "more\n")):
        write()
        assert link.is_symlink() and stat.S_IMODE(real.stat().st_mode) == 0o640
    assert real.read_text() == "new\nmore\n" and os.listdir(real.parent) == ["reports.jsonl"]


def test_the_name_of_an_unfinished_run_is_no_output(tmp_path):
    for name in ("a.jsonl.partial", "a.jsonl.partial.run"):
        with pytest.raises(DiveError, match="belongs to an unfinished run"):
            JsonlWriter(tmp_path / name)
    (tmp_path / "a.jsonl.partial").symlink_to("elsewhere")
    (tmp_path / "elsewhere").write_text("")
    with pytest.raises(DiveError, match="a.jsonl.partial is a link"):
        JsonlWriter(tmp_path / "a.jsonl")


def test_a_row_that_finds_no_room_is_taken_back(tmp_path):
    path = tmp_path / "reports.jsonl"
    run = {"n": 1}
    with JsonlWriter(path, fingerprint=run) as writer:
        with files_of_at_most(100):
            writer.append({"id": "a", "report": "x" * 40})
            with pytest.raises(DiveError) as caught:
                writer.append({"id": "b", "report": "y" * 60})
            said = str(caught.value)
            assert "File too large (86 bytes wanted, this process may write files of 100)" in said
            assert str(path) in said and "(1 record) stays in" in said and "\n" not in said
            assert rows(writer.partial) == [{"id": "a", "report": "x" * 40}]
            assert list(writer.done) == ["a"]
        writer.append({"id": "c"})  # there is room again: no torn line before it
        assert [row["id"] for row in rows(writer.partial)] == ["a", "c"]
    with (
        files_of_at_most(30),
        JsonlWriter(path, fingerprint=run) as writer,
        pytest.raises(DiveError, match="File too large"),
    ):
        assert list(writer.done) == ["a", "c"]
        writer.append({"id": "d"})
    with JsonlWriter(path, fingerprint=run) as writer:
        writer.append({"id": "d"})
        writer.finish()
    assert [row["id"] for row in rows(path)] == ["a", "c", "d"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_torn_line_that_cannot_be_taken_back_is_the_last(number, tmp_path, monkeypatch):
    path, own = tmp_path / "reports.jsonl", atomic.write_all

    def half(handle, data):
        if data.startswith(b"["):  # a note
            return own(handle, data)
        os.write(handle, data[: len(data) // 2])
        raise OSError(number, os.strerror(number))

    def broken(handle, size):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with JsonlWriter(path) as writer:
        writer.append({"id": "a"})
        with monkeypatch.context() as patch:
            patch.setattr("dive.files.atomic.write_all", half)
            patch.setattr(os, "ftruncate", broken)
            with pytest.raises(DiveError, match=rf"{os.strerror(number)} \(12 bytes wanted"):
                writer.append({"id": "b"})
        with pytest.raises(DiveError, match="its writer is closed"):
            writer.append({"id": "c"})
    assert writer.partial.read_bytes() == b'{"id": "a"}\n{"id":'
    with JsonlWriter(path) as writer:
        assert list(writer.done) == ["a"]
        writer.append({"id": "b"})
        writer.finish()
    assert rows(path) == [{"id": "a"}, {"id": "b"}]


def test_what_others_do_to_the_unfinished_file_stops_the_run(tmp_path):
    path = tmp_path / "reports.jsonl"

    def begun():
        writer = JsonlWriter(path)
        writer.append({"id": "a"})
        return writer

    with begun() as writer:
        with writer.partial.open("a") as file:
            file.write('{"id": "another"}\n')
        with pytest.raises(DiveError, match="partial: another process has changed it"):
            writer.append({"id": "b"})
    writer.partial.unlink()
    with begun() as writer:
        os.rename(writer.partial, tmp_path / "taken")
        writer.partial.write_text('{"id": "a"}\n')
        with pytest.raises(DiveError, match="partial: another process has changed it"):
            writer.finish()
        assert not path.exists()
    writer.partial.unlink()
    with begun() as writer:
        path.write_text("another's\n")
        with pytest.raises(DiveError, match="has written it since .*1 record. stays in .*partial$"):
            writer.finish()
    assert path.read_text() == "another's\n" and rows(writer.partial) == [{"id": "a"}]
    with JsonlWriter(path) as writer:
        path.write_text("another's again\n")
        with pytest.raises(DiveError, match="has written it since"):
            writer.finish()
    with JsonlWriter(path, overwrite=True) as writer:
        path.write_text("another's once more\n")
        writer.finish()
    assert rows(path) == [{"id": "a"}]


def test_several_files_are_replaced_only_where_there_is_room_for_all(tmp_path):
    names = [tmp_path / "a", tmp_path / "b"]
    for name in names:
        name.write_text("old")
    with files_of_at_most(1000), pytest.raises(DiveError, match=r"/b: File too large \(2,000 byt"):
        atomic.write_together({names[0]: b"new", names[1]: bytes(2000)})
    assert [name.read_text() for name in names] == ["old", "old"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_file_written_aside_that_was_exchanged_gets_no_name(tmp_path, monkeypatch):
    def exchanged(handle):
        (aside,) = tmp_path.glob(".a.*.tmp")
        aside.unlink()
        aside.write_text("another's")

    monkeypatch.setattr(os, "fsync", exchanged)
    with pytest.raises(DiveError, match=r"another process took .*\.tmp away"):
        write_text(tmp_path / "a", "mine")
    assert not (tmp_path / "a").exists()


def test_the_mask_of_the_process_is_not_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("another thread would see it"))
    write_text(tmp_path / "a", "x")


def test_what_kills_left_is_swept_and_nothing_else(tmp_path):
    stays = [".a.jsonl.b.01234567.tmp", "a.jsonl.01234567.tmp", ".b.jsonl.01234567.tmp"]
    for name in [".a.jsonl.01234567.tmp", ".a.jsonl.partial.run.89abcdef.tmp", *stays]:
        (tmp_path / name).write_text("")
    with JsonlWriter(tmp_path / "a.jsonl"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(stays)


def test_a_line_is_appended_whole_or_not(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLog(path)

    class State:
        is_world_process_zero, global_step = True, 1

    log.on_log(None, State, None, {"loss": 1.0})
    with files_of_at_most(60), pytest.raises(DiveError, match=r"log.jsonl: File too large \("):
        log.on_log(None, State, None, {"loss": 2.0, "x": "y" * 60})
    assert rows(path) == [{"loss": 1.0, "step": 1}]
    with path.open("a") as file:
        file.write('{"torn')
    append_line(path, "{}\n")
    assert path.read_text().splitlines()[1:] == ['{"torn', "{}"]


def test_caches_say_it_once_and_go_on_or_end_with_one_line(tmp_path, caplog):
    store = FeatureStore.__new__(FeatureStore)
    store.folder, store._full, store.written = tmp_path, False, 0
    import torch

    with files_of_at_most(100):
        for key in ("aa", "bb"):
            store.put(key, {"x": torch.zeros(100)})
    assert caplog.text.count("File too large") == 1 and "bytes wanted" in caplog.text
    assert store.written == 0 and not list(tmp_path.glob("*/*"))
    with _Store(tmp_path / "annotations.sqlite") as annotations:
        with files_of_at_most(64 * 1024), pytest.raises(DiveError, match="cannot write .*sqlite"):
            for key in range(100):
                annotations.put(str(key), {"text": "x" * 1000})  # type: ignore[typeddict-item]
        assert annotations.get({"text": "0"}) == {"text": {"text": "x" * 1000}}


def test_bytes_and_the_place_are_said(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = str(disk.unwritable(tmp_path / "not" / "there", full, 1234))
    assert said.startswith(f"cannot write {tmp_path}/not/there: No space left on device (1,234 byt")
    assert said.endswith("left on the disk)") and disk.free_bytes(tmp_path / "not") > 0
    denied = OSError(errno.EACCES, "Permission denied")
    assert disk.reason(denied, tmp_path, 5) == "Permission denied"
    assert disk.reason(OSError(), tmp_path) == "OSError"


def test_an_adapter_over_another_on_a_full_disk(tiny_llava, tmp_path):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=2), backbone)
    adapter.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    adapter.metadata["more"] = "x" * 10_000
    with files_of_at_most(8000), pytest.raises(DiveError, match="adapter_config.json: File too la"):
        adapter.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


FULL_DISK = """
import os, sys
from dive.files.json_lines import JsonlWriter
from dive.errors import DiveError
path = sys.argv[1] + "/reports.jsonl"
with open(sys.argv[1] + "/filler", "wb") as filler:
    filler.write(bytes(100_000))
n = 0
with JsonlWriter(path) as writer:
    try:
        while n < 1000:
            writer.append({"id": str(n), "report": "x" * 1000})
            n += 1
    except DiveError as error:
        print(error)
    assert 0 < n < 1000 and open(writer.partial, "rb").read().count(b"\\n") == n
    os.truncate(sys.argv[1] + "/filler", 0)
    writer.append({"id": "last"})
    writer.finish()
assert [line.rstrip()[-2:] for line in open(path)] == ['"}'] * (n + 1)
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("unshare") is None, reason="no unshare")
def test_a_disk_that_is_full(tmp_path):
    # a file system of 256 KiB that this process alone sees, and that ends with it
    mount = 'mount -t tmpfs -o size=256k tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, FULL_DISK],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode and "assert" not in done.stderr and "Traceback" not in done.stderr:
        pytest.skip(f"no file system can be made here: {done.stderr[-200:]}")
    assert not done.stderr and done.returncode == 0
    said = done.stdout.strip()
    assert "reports.jsonl: No space left on device (1,0" in said and "left on the disk)" in said
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_finds_no_room_is_one_line(tmp_path):
    program = (
        "import resource, sys; from dive.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); main()"
    )
    with (tmp_path / "answer").open("w") as answer:
        done = subprocess.run(
            [sys.executable, "-c", program, "evaluate", "--help"],
            stdout=answer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        ["error: cannot write: File too large (this process may write files of 100)"],
    )


@pytest.mark.parametrize("most", [100, 4000, 70_000])
def test_what_torch_says_of_a_full_disk_is_known(most, tmp_path):
    import torch

    from dive.training.whole_checkpoints import _of_writing, _why

    with files_of_at_most(most):
        with pytest.raises((RuntimeError, OSError)) as caught:
            torch.save({"a": torch.zeros(20_000), "b": torch.zeros(100)}, tmp_path / "a")
        assert isinstance(caught.value, OSError) or _of_writing(caught.value)
        assert f"may write files of {most:,}" in _why(caught.value, tmp_path)
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert not _of_writing(caught.value)
