"""A checkpoint is complete or has no name, at whatever instant a training is killed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import save_studies
from trainings import CONFIG, equal, names
from transformers import TrainerState

import dive
from dive.data import read_studies
from dive.errors import DiveError
from dive.training import checkpoints
from dive.training.checkpoints import ASIDE, checkpoints_in, harm_of


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    save_studies(folder)
    return read_studies(folder / "studies.jsonl")


@pytest.fixture(scope="module")
def llava(tiny_llava):
    return dive.load_backbone(tiny_llava)


@pytest.fixture(scope="module")
def done(llava, studies, tmp_path_factory):
    """An undisturbed training: its adapter, and its folder with checkpoints 6 and 7."""
    folder = tmp_path_factory.mktemp("done")
    adapter = dive.distill(llava, studies, config=CONFIG, output_dir=folder)
    return adapter, folder


def losses(folder):
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def test_the_last_two_stay_and_nothing_else(done):
    folder = done[1]
    assert names(folder) == ["checkpoint-7", "checkpoint-6"]
    assert [harm_of(path) for path in checkpoints_in(folder)] == [None, None]
    assert not (folder / ASIDE).exists()
    listed = json.loads((folder / "checkpoint-7" / "whole.json").read_text())["files"]
    assert {*listed} == {path.name for path in (folder / "checkpoint-7").iterdir()} - {"whole.json"}
    assert {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
            "adapter.safetensors", "adapter_config.json", "left_out.json"} <= {*listed}  # fmt: skip
    # a checkpoint ends its interval of the log
    assert [step for step, _ in losses(folder)] == [2, 3, 4, 6, 7]


def stop_at(call, number):
    """A `call` that does half of its work and is killed when it comes to `number` again."""
    count = iter(range(1, 1000))

    def stopped(*args, **more):
        if next(count) != number:
            return call(*args, **more)
        if call is torch.save:
            Path(args[1]).write_bytes(b"half")
        if call is shutil.rmtree and Path(args[0]).is_dir():
            next(Path(args[0]).iterdir()).unlink()
        raise KeyboardInterrupt

    return stopped


# where a training is killed: the function, and the number of the call
PLACES = {
    "optimizer": (torch, "save", 7),  # three files per checkpoint: the first of step 6
    "scheduler": (torch, "save", 8),
    "random state": (torch, "save", 9),
    "trainer state": (TrainerState, "save_to_json", 3),
    "digests": (checkpoints, "_facts", 16),
    "before the name": (Path, "rename", 3),
    "before the rotation": (shutil, "rmtree", 6),
    "rotation": (shutil, "rmtree", 7),
    "first checkpoint": (torch, "save", 2),
}


@pytest.mark.parametrize("place", PLACES)
def test_ended_while_a_checkpoint_is_written(place, llava, studies, done, tmp_path, monkeypatch):
    owner, name, number = PLACES[place]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, stop_at(getattr(owner, name), number))
        dive.distill(llava, studies, config=CONFIG, output_dir=tmp_path)
    assert all(harm_of(path) is None for path in checkpoints_in(tmp_path))
    left = {"before the rotation": [6, 4, 2], "rotation": [6, 4], "first checkpoint": []}
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left.get(place, [4, 2])]
    resumed = dive.distill(llava, studies, config=CONFIG, output_dir=tmp_path, resume=True)
    assert equal(done[0], resumed)
    assert names(tmp_path) == ["checkpoint-7", "checkpoint-6"]
    assert losses(tmp_path) == losses(done[1])


FILES = (
    "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter.safetensors",
    "adapter_config.json", "left_out.json", "whole.json",
)  # fmt: skip


def copy_of(done, tmp_path):
    return shutil.copytree(done[1], tmp_path / "run")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_what_was_harmed_is_passed_over(how, name, llava, studies, done, tmp_path, caplog):
    folder = copy_of(done, tmp_path)
    file = folder / "checkpoint-7" / name
    data = file.read_bytes()
    file.unlink() if how == "missing" else file.write_bytes(data[: len(data) // 2])
    resumed = dive.distill(llava, studies, config=CONFIG, output_dir=folder, resume=True)
    said = [one.getMessage() for one in caplog.records if one.name.startswith("dive")]
    assert said[-2:] == [
        f"{folder / 'checkpoint-7'} is not whole ({name} is {how}) and is passed over",
        f"the training goes on from {folder / 'checkpoint-6'}",
    ]
    assert equal(done[0], resumed)
    assert losses(folder) == losses(done[1])
    assert [harm_of(path) for path in checkpoints_in(folder)] == [None, None]


def test_where_none_is_whole_the_training_starts_anew(llava, studies, done, tmp_path, caplog):
    folder = copy_of(done, tmp_path)
    shutil.rmtree(folder / "checkpoint-6")
    (folder / "checkpoint-6").mkdir()
    (folder / "checkpoint-7" / "optimizer.pt").unlink()
    with pytest.raises(DiveError, match="unfinished training; resume it"):
        dive.distill(llava, studies, config=CONFIG, output_dir=folder)
    again = dive.distill(llava, studies, config=CONFIG, output_dir=folder, resume=True)
    assert equal(done[0], again)
    assert "checkpoint-7 is not whole (optimizer.pt is missing)" in caplog.text
    assert "checkpoint-6 is not whole (whole.json is missing)" in caplog.text
    assert "has no checkpoint to resume; the training starts anew" in caplog.text
    assert losses(folder) == losses(done[1])  # without the log of the earlier one
    assert names(folder) == ["checkpoint-7", "checkpoint-6"]


def test_the_log_of_another_training_is_not_mixed_in(llava, studies, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"loss": 9.0, "step": 1}\n{"loss": 8.0, "st')
    dive.distill(llava, studies, config=replace(CONFIG, steps=2), output_dir=tmp_path)
    assert [step for step, _ in losses(tmp_path)] == [2]


def test_a_training_that_had_ended_is_resumed_to_the_same_log(llava, studies, done, tmp_path):
    folder = copy_of(done, tmp_path)
    resumed = dive.distill(llava, studies, config=CONFIG, output_dir=folder, resume=True)
    assert equal(done[0], resumed)
    assert names(folder) == ["checkpoint-7", "checkpoint-6"]  # no further step
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert sum("train_runtime" in row for row in rows) == 1
    assert losses(folder) == losses(done[1])


@pytest.mark.parametrize("name", ["save", "save_to_json"])
def test_a_disk_that_is_full(name, llava, studies, tmp_path, monkeypatch):
    def full(*_, **__):
        if name == "save":
            raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch if name == "save" else TrainerState, name, full)
    with pytest.raises(DiveError, match="the checkpoint of step 2 cannot be written into .*: "):
        dive.distill(llava, studies, config=CONFIG, output_dir=tmp_path)
    assert names(tmp_path) == []


def test_removing_them_leaves_the_rest(done, tmp_path):
    folder = copy_of(done, tmp_path)
    there = {path.name for path in folder.iterdir()}
    assert {"run.json", "log.jsonl", "checkpoint-6", "checkpoint-7"} == there
    (folder / ASIDE / "checkpoint-8").mkdir(parents=True)
    checkpoints.remove_all(folder)
    assert {path.name for path in folder.iterdir()} == {"run.json", "log.jsonl"}
    checkpoints.remove_all(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
