"""Settings of an adapter that are null, absent or empty are unknown, or one clear error, and so are
entries of its folder that are not regular files."""

import copy
import json
import os
import socket
import warnings

import pytest
from tiny_steering import randomised

import dive
from dive.adapter.adapter import SteeringAdapter
from dive.adapter.files import _FIELDS, _NEEDED
from dive.adapter.hub import _forget_paths, model_card
from dive.errors import DiveError
from dive.generation.generate_reports import prompter_for
from dive.generation.resume import adapter_digests

SMALL = dict(preset="dive-ce", steps=1, batch_size=2, rank=2)
GONE = object()
EMPTY = [None, GONE, "", [], {}, 0, False]


@pytest.fixture(scope="module")
def backbone(tiny_llava):
    return dive.load_backbone(tiny_llava)


@pytest.fixture(scope="module")
def learnt(backbone, studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learnt")
    dive.distill(backbone, studies, config=dive.DistillConfig(**SMALL)).save_pretrained(folder)
    return folder


def changed(metadata, name, value):
    """The metadata with a field replaced by this; None where there is no such field."""
    whole = owner = copy.deepcopy(metadata)
    *path, last = name.split(".")
    for part in path:
        owner = owner.get(part)
        if not isinstance(owner, dict):
            return None
    owner.pop(last, None)
    if value is not GONE:
        owner[last] = value
    return whole


@pytest.mark.parametrize("value", EMPTY, ids=lambda value: "gone" if value is GONE else repr(value))
def test_every_field(learnt, backbone, tmp_path, value):
    weights = (learnt / "adapter.safetensors").read_bytes()
    settings = json.loads((learnt / "adapter_config.json").read_text())
    unknown = value is None or value is GONE
    taken = []
    for name in _FIELDS | _NEEDED:
        metadata = changed(settings["metadata"], name, value)
        assert metadata is not None, name
        (tmp_path / "adapter.safetensors").write_bytes(weights)
        (tmp_path / "adapter_config.json").write_text(
            json.dumps({**settings, "metadata": metadata})
        )
        try:
            adapter = SteeringAdapter.from_pretrained(tmp_path)
        except DiveError as error:
            assert f"metadata.{'backbone' if name == 'backbone' else name}" in str(error)
            assert not unknown or name in _NEEDED or name == "backbone", name
            continue
        taken.append(name)
        with warnings.catch_warnings():
            # unknown fields match any backbone
            warnings.simplefilter("error" if unknown else "ignore")
            warnings.filterwarnings("ignore", message="the adapter was trained with max_image")
            warnings.filterwarnings("ignore", message="the chat template prints the date")
            try:
                adapter.check_backbone(backbone)
                prompter_for(backbone, adapter)
            except DiveError as error:
                assert not unknown, (name, error)
        card = model_card(adapter)
        assert "None" not in card, (name, card)
        adapter_digests(adapter)
        _forget_paths(tmp_path / "adapter_config.json")
    assert not unknown or len(taken) == len(_FIELDS) - 1


def put(path, kind):
    if kind == "loop":
        path.symlink_to(path.name)
    elif kind == "nowhere":
        path.symlink_to("is-not-there")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter.safetensors"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("loop", "is a symbolic link to itself, want"),
        ("nowhere", "is a symbolic link that leads nowhere"),
        ("pipe", "is a pipe, want a regular file"),
        ("folder", "is a folder, want a regular file"),
        ("socket", "is a socket, want a regular file"),
    ],
)
def test_what_is_no_file_is_named(backbone, tmp_path, monkeypatch, name, kind, said):
    randomised(backbone).save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    monkeypatch.chdir(tmp_path)  # a socket's name may have some 100 letters only
    put(tmp_path / name, kind)
    with pytest.raises(DiveError, match=f"{name} {said}"):
        SteeringAdapter.from_pretrained(tmp_path)


def test_a_link_to_a_file_is_one(backbone, tmp_path):
    randomised(backbone).save_pretrained(tmp_path / "there")
    (tmp_path / "here").mkdir()
    for file in (tmp_path / "there").iterdir():
        (tmp_path / "here" / file.name).symlink_to(file)
    SteeringAdapter.from_pretrained(tmp_path / "here").check_backbone(backbone)
