"""A training is resumed only as itself; the checkpoints of a finished one are removed."""

import contextlib
import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from command_line import call
from tiny import save_studies
from trainings import CONFIG, equal, names

import dive
from dive.backbone.weights_digest import weights_digest
from dive.data import read_studies
from dive.errors import DiveError
from dive.files.atomic import remove_leftovers, write_together
from dive.training import checkpoints, finished, resume
from dive.training.checkpoints import harm_of, is_the_end_of
from dive.training.fingerprint import FINGERPRINT_FILE


@pytest.fixture(scope="module")
def done(tiny_llava, tmp_path_factory):
    """A folder with a model and studies, and the adapter of a finished training."""
    folder = tmp_path_factory.mktemp("done")
    shutil.copytree(tiny_llava, folder / "model")
    save_studies(folder)
    backbone = dive.load_backbone(folder / "model", device="cpu")
    studies = read_studies(folder / "studies.jsonl")
    adapter = dive.distill(backbone, studies, config=CONFIG, output_dir=folder / "run")
    return folder, adapter


def resumed(done, **more):
    folder = done[0]
    backbone = more.pop("backbone", None) or dive.load_backbone(folder / "model", device="cpu")
    studies = read_studies(folder / "studies.jsonl")
    options = {"config": CONFIG, "output_dir": folder / "run", "resume": True, **more}
    return dive.distill(backbone, studies, **options)


def test_another_dtype_or_number_of_ranks(done, monkeypatch):
    backbone = dive.load_backbone(done[0] / "model", device="cpu", dtype="bfloat16")
    with pytest.raises(DiveError, match=r"dtype 'float32' \(now 'bfloat16'\)") as error:
        resumed(done, backbone=backbone)
    assert "other weights of the backbone" in str(error.value)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DiveError, match=r"ranks 1 \(now 2\)"):
        resumed(done)


@pytest.mark.parametrize("value", [None, 7, "x" * 9000, ["y"] * 900, {"a": "z" * 9000}, {}, [[]]])
def test_a_damaged_description_is_one_short_line(value, done, tmp_path):
    path = shutil.copytree(done[0] / "run", tmp_path / "run") / FINGERPRINT_FILE
    run = json.loads(path.read_text())
    for name in run:
        if run[name] == value:
            continue
        path.write_text(json.dumps(run | {name: value}))
        resume.unreadable_before(path.parent)
        resume.date_before(path.parent)
        if name in ("validation_hash", "unreadable"):
            continue
        if name.startswith("template_") and name != "template_hash":  # its hash is what counts
            continue
        if name == "films" and isinstance(
            value, dict
        ):  # of other studies, which are reported elsewhere
            continue
        with pytest.raises(
            DiveError, match=r"run: the unfinished training had .*; it cannot go"
        ) as e:
            resume.find_checkpoint(path.parent, True, run)
        assert len(str(e.value)) < 700 and "\n" not in str(e.value), name
        if name == "config" and not isinstance(value, dict):
            assert "a damaged run.json (config is " in str(e.value)
    path.write_text(json.dumps(value))
    with pytest.raises(DiveError, match="the unfinished training had"):
        resume.find_checkpoint(path.parent, True, run)


def test_a_choice_of_cached_features_is_said_in_words(done):
    config = dataclasses.replace(CONFIG, cache_images=True)
    with pytest.raises(DiveError, match=r"another choice of cache_images \(--image-cache\): "):
        resumed(done, config=config)


def test_one_number_of_the_backbone(done):
    backbone = dive.load_backbone(done[0] / "model", device="cpu")
    weight = backbone.model.get_input_embeddings().weight
    with torch.no_grad():
        weight[7, 3] = torch.nextafter(weight[7, 3], torch.tensor(9.0))
    with pytest.raises(DiveError, match="had other weights of the backbone; it cannot go on"):
        resumed(done, backbone=backbone)


def test_settings_and_processor_of_the_backbone(done):
    backbone = dive.load_backbone(done[0] / "model", device="cpu")
    backbone.model.config.text_config.rms_norm_eps = 1e-3
    backbone.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    backbone.tokenizer.add_tokens(["pneumo"])
    with pytest.raises(DiveError, match="another tokenizer or image processor") as error:
        resumed(done, backbone=backbone)
    assert "other settings of the backbone (its config.json)" in str(error.value)


def test_a_film_of_the_same_size(done):
    film = done[0] / "images" / "03_frontal.png"
    data = film.read_bytes()
    film.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    try:
        with pytest.raises(DiveError, match=r"had other films \(of 1 study\); it cannot"):
            resumed(done)
    finally:
        film.write_bytes(data)
    os.utime(film, (1, 1))  # a copy
    assert equal(resumed(done), done[1])


@pytest.mark.parametrize("name", ["device", "weights_hash", "versions", "films"])
def test_a_training_of_an_earlier_version_is_told_as_one(name, done):
    path = done[0] / "run" / "run.json"
    text = path.read_text()
    run = json.loads(text)
    del run[name]
    path.write_text(json.dumps(run))
    try:
        with pytest.raises(DiveError, match=f"no word on its {name} .an earlier version of dive"):
            resumed(done)
    finally:
        path.write_text(text)


def test_the_digest_of_weights_is_of_every_bit_and_nothing_else(tiny_llava):
    model = dive.load_backbone(tiny_llava, device="cpu").model
    known = weights_digest(model)
    assert weights_digest(dive.load_backbone(tiny_llava, device="cpu")) == known
    found = {known}
    with torch.no_grad():
        for weight in model.parameters():
            flat = weight.view(-1)
            kept = flat[-1].item()
            flat[-1] = kept + 1e-3
            found.add(weights_digest(model))
            flat[-1] = kept
        weight = model.get_input_embeddings().weight
        swapped = weight[[1, 0]].clone()
        weight[:2] = swapped  # the same numbers at other indices
        found.add(weights_digest(model))
    assert len(found) == 2 + sum(1 for _ in model.parameters())
    assert weights_digest(model.bfloat16()) not in found


HARMS = {
    "an empty list": (lambda c: relist(c, lambda files: files.clear()), "does not list trainer_st"),
    "no optimizer": (
        lambda c: (relist(c, lambda f: f.pop("optimizer.pt")), (c / "optimizer.pt").unlink()),
        "does not list optimizer.pt",
    ),
    "no random state": (lambda c: relist(c, lambda f: f.pop("rng_state.pth")), "a random state"),
    "a path": (lambda c: relist(c, lambda f: f.update({"../run.json": [1, ""]})), "is damaged"),
    "deep": (lambda c: (c / "whole.json").write_text("[" * 99_999), "whole.json is damaged"),
    "bytes": (lambda c: (c / "whole.json").write_bytes(b"\xff{}"), "whole.json is damaged"),
    "one bit": (lambda c: flip(c / "adapter.safetensors"), "adapter.safetensors is damaged"),
    "one bit of the rng": (lambda c: flip(c / "rng_state.pth"), "rng_state.pth is damaged"),
    "more": (lambda c: (c / "scaler.pt").write_bytes(b"x"), "scaler.pt was not written with it"),
    "a folder": (
        lambda c: ((c / "scheduler.pt").unlink(), (c / "scheduler.pt").mkdir()),
        "scheduler.pt is missing",
    ),
    "a pipe": (
        lambda c: ((c / "scheduler.pt").unlink(), os.mkfifo(c / "scheduler.pt")),
        "scheduler.pt is missing",
    ),
    "another name": (lambda c: c.rename(c.with_name("checkpoint-9")), "it is of step 7"),
}


def relist(checkpoint, change):
    path = checkpoint / "whole.json"
    listed = json.loads(path.read_text())
    change(listed["files"])
    path.write_text(json.dumps(listed))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("what", HARMS)
def test_a_harmed_checkpoint_is_told(what, done, tmp_path):
    change, said = HARMS[what]
    folder = shutil.copytree(done[0] / "run", tmp_path / "run")
    change(folder / "checkpoint-7")
    newest = checkpoints.checkpoints_in(folder)[0]
    assert said in harm_of(newest)
    assert checkpoints.last_whole(folder)[0].name == "checkpoint-6"


def test_hidden_files_of_a_desktop_harm_nothing(done, tmp_path):
    folder = shutil.copytree(done[0] / "run", tmp_path / "run")
    (folder / "checkpoint-7" / ".DS_Store").write_bytes(b"x")
    assert harm_of(folder / "checkpoint-7") is None


class Stop(BaseException):
    """Stands for a kill: nothing catches it."""


def stopped_at(number, call):
    """A `call` that raises Stop at its `number`th use, as if the process had been killed there."""
    count = iter(range(1, 10_000))

    def stops(*args, **more):
        if next(count) == number:
            raise Stop
        return call(*args, **more)

    return stops


PLACES = [
    (Path, "unlink", 1), (os, "replace", 1), (os, "replace", 2), (shutil, "rmtree", 1),
    (Path, "rename", 1), (Path, "rename", 2), (shutil, "rmtree", 2), (shutil, "rmtree", 3),
]  # fmt: skip


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("owner, name, number", PLACES)
def test_ended_in_the_last_moment(owner, name, number, old, done, tmp_path, monkeypatch, capsys):
    """Between the last step and the last removal the adapter exists or can be made again."""
    folder, adapter = done
    out = tmp_path / "out"
    if old:
        dive.SteeringAdapter(
            CONFIG.steering(), dive.load_backbone(folder / "model")
        ).save_pretrained(out)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
    shutil.copytree(folder / "run", out / "checkpoints")

    def finish():
        adapter.save_pretrained(out)
        finished.remove_checkpoints(out / "checkpoints")

    with monkeypatch.context() as patch:
        stops = stopped_at(number, getattr(owner, name))
        patch.setattr(owner, name, stops)
        try:
            finish()
            killed = False
        except Stop:
            killed = True
    whole = (out / "adapter_config.json").exists()
    if whole:
        there = dive.SteeringAdapter.from_pretrained(out)
        assert equal(there, adapter) or {p: (out / p).read_bytes() for p in before} == before
    left = finished.clear_finished(out)
    if left:
        assert equal(dive.SteeringAdapter.from_pretrained(out), adapter)
        assert {path.name for path in out.iterdir()} == {
            "adapter.safetensors", "adapter_config.json", "checkpoints"
        }  # fmt: skip
        assert os.listdir(out / "checkpoints") == ["log.jsonl"]
    elif whole and equal(dive.SteeringAdapter.from_pretrained(out), adapter):
        assert not names(out / "checkpoints")
    else:
        assert killed and names(out / "checkpoints") == ["checkpoint-7", "checkpoint-6"]
        assert (out / "checkpoints" / "run.json").exists()


def test_the_command_says_that_a_training_had_ended(done, tmp_path):
    folder, adapter = done
    out = tmp_path / "out"
    adapter.save_pretrained(out)
    shutil.copytree(folder / "run", out / "checkpoints")
    command = [
        "distill", "--backbone", folder / "model", "--studies", folder / "studies.jsonl",
        "--out", out,
    ]  # fmt: skip
    result = call(*command, "--resume")
    assert result.exit_code == 0 and "had come to its end" in result.stderr
    assert os.listdir(out / "checkpoints") == ["log.jsonl"]
    shutil.copytree(folder / "run", out / "checkpoints", dirs_exist_ok=True)
    answer = json.loads(call(*command, "--resume", "--json").stdout)
    assert answer["parameters"] == adapter.num_parameters() and answer["steps"] == 7
    with pytest.raises(DiveError, match="the training there is finished, and there is nothing"):
        call(*command, "--resume")


def test_an_unfinished_training_beside_an_older_adapter_is_none(done, tmp_path):
    folder, adapter = done
    out = tmp_path / "out"
    adapter.save_pretrained(out)
    shutil.copytree(folder / "run", out / "checkpoints")
    shutil.rmtree(out / "checkpoints" / "checkpoint-7")
    assert not is_the_end_of(out / "checkpoints", out / "adapter.safetensors")
    assert not finished.clear_finished(out)
    assert names(out / "checkpoints") == ["checkpoint-6"]
    # a training that was killed before or in its first checkpoint
    shutil.rmtree(out / "checkpoints" / "checkpoint-6")
    (out / "checkpoints" / ".unfinished").mkdir()
    assert not finished.clear_finished(out)
    assert (out / "checkpoints" / "run.json").exists()


def test_files_of_two_adapters_are_never_mixed(tmp_path, monkeypatch):
    old, new = {"a": b"1", "b": b"2"}, {"a": b"one", "b": b"two"}

    def write(files):
        write_together({folder / name: data for name, data in files.items()})

    for number in range(1, 6):
        folder = tmp_path / str(number)
        write(old)
        with monkeypatch.context() as patch:
            calls = iter(range(1, 100))
            for owner, name in ((os, "replace"), (Path, "unlink")):
                own = getattr(owner, name)

                def stops(*args, own=own, number=number, calls=calls, **more):
                    if next(calls) == number:
                        raise Stop
                    return own(*args, **more)

                patch.setattr(owner, name, stops)
            with contextlib.suppress(Stop):
                write(new)
        there = {one: (folder / one).read_bytes() for one in "ab" if (folder / one).exists()}
        assert there in (old, new) or "b" not in there
        write(new)
        assert {one.name: one.read_bytes() for one in folder.iterdir()} == new
    assert there == new  # it makes fewer calls than that


def test_what_a_kill_left_of_a_save_is_removed(tmp_path):
    (tmp_path / ".a.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / ".a.mine.tmp").write_bytes(b"somebody's")
    remove_leftovers(tmp_path / "a")
    assert os.listdir(tmp_path) == [".a.mine.tmp"]
