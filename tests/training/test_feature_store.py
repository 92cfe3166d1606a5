"""Image features on disk: a second training runs no vision tower, and no stale entry is found."""

import json
import logging
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_features import Tower, load_family, settings, takes_features
from tiny_more import FAMILIES

import dive
from dive.data.images.load import LazyImage
from dive.errors import DiveError
from dive.prompting.prompter import Prompter
from dive.training.feature_store import FeatureStore, _flat, _nested, key_of, settings_of


@pytest.fixture(scope="module", params=FAMILIES)
def seeing(request, tmp_path_factory):
    return request.param, load_family(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def llava(tiny_llava):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    if not takes_features(backbone):
        pytest.skip("this transformers takes no image features")
    return backbone


def train(backbone, studies, shots, folder, tmp, **more):
    """The adapter's tensors, the losses of the steps, and the runs of the tower."""
    with Tower(backbone) as tower:
        adapter = dive.distill(
            backbone,
            studies,
            shots,
            settings(cache_images=folder, logging_steps=1, **more),
            output_dir=tmp,
            progress=False,
        )
    rows = [json.loads(line) for line in (tmp / "log.jsonl").read_text().splitlines()]
    return adapter.state_dict(), [row["loss"] for row in rows if "loss" in row], tower.runs


def test_a_second_training_never_runs_the_tower(seeing, studies, tmp_path):
    """Adapter and losses are the same bit for bit in every family, with a teacher."""
    name, backbone = seeing
    shots = None if name == "LLaVA-OneVision" else 1  # it encodes several images differently
    more = {"preset": "dive-ce"} if shots is None else {}
    first, losses, runs = train(
        backbone, studies[:3], shots, tmp_path / "c", tmp_path / "1", **more
    )
    again, same, none = train(backbone, studies[:3], shots, tmp_path / "c", tmp_path / "2", **more)
    assert runs == 1 + 1 + 3 and none == 0  # the verification takes two
    assert len(losses) == 6 and losses == same
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert len(list((tmp_path / "c").glob("*/*/*.safetensors"))) == 3


def test_the_cache_on_disk_trains_what_the_one_in_memory_does(llava, studies, tmp_path):
    kept = dive.distill(llava, studies[:3], 1, settings(cache_images=True), progress=False)
    stored, *_ = train(llava, studies[:3], 1, str(tmp_path / "c"), tmp_path / "run")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in kept.state_dict().items())


def test_the_adapter_does_not_tell_where_the_cache_was(llava, studies, tmp_path):
    config = settings(preset="dive-ce", epochs=1, cache_images=tmp_path / "private")
    adapter = dive.distill(llava, studies[:2], None, config, progress=False)
    assert adapter.metadata["distillation"]["config"]["cache_images"] is True
    assert "private" not in json.dumps(adapter.metadata)


def folders(backbone, root, **more):
    return FeatureStore(root, Prompter(backbone, **more)).folder.name


def test_other_settings_have_another_folder(llava, tiny_llava, tiny_qwen, tmp_path):
    """Copies of files, the head and the text's layers do not matter; everything else does."""
    own = folders(llava, tmp_path)
    copied = tmp_path / "moved"
    shutil.copytree(tiny_llava, copied)
    moved = dive.load_backbone(copied, device="cpu")
    assert folders(moved, tmp_path) == own
    with torch.no_grad():
        moved.model.lm_head.weight += 1
        next(moved.model.get_decoder().parameters()).mul_(2)
    assert folders(moved, tmp_path) == own
    changed = [own]
    half = dive.load_backbone(tiny_llava, device="cpu", dtype="bfloat16")
    changed.append(folders(half, tmp_path))
    moved.processor.image_processor.image_mean = [0.4, 0.4, 0.4]
    changed.append(folders(moved, tmp_path))
    moved.processor.image_processor.image_mean = llava.processor.image_processor.image_mean
    with torch.no_grad():
        moved.model.base_model.vision_tower.get_parameter(
            next(n for n, _ in moved.model.base_model.vision_tower.named_parameters())
        ).view(-1)[0] += 1e-3
    changed.append(folders(moved, tmp_path))
    qwen = dive.load_backbone(tiny_qwen, device="cpu")
    changed += [folders(qwen, tmp_path, max_image_tokens=n) for n in (None, 2, 4)]
    assert len(set(changed)) == len(changed) == 7


def test_a_changed_processor_or_film_is_computed_anew(tiny_llava, studies_folder, tmp_path):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    if not takes_features(backbone):
        pytest.skip("this transformers takes no image features")
    studies = dive.data.read_studies(studies_folder / "studies.jsonl")[:2]
    more = {"preset": "dive-ce", "epochs": 1}
    assert train(backbone, studies, None, tmp_path / "c", tmp_path / "1", **more)[2] == 2 + 2
    path = studies[1].images[0]
    Image.open(path).convert("L").point(lambda value: 255 - value).save(path)
    assert train(backbone, studies, None, tmp_path / "c", tmp_path / "2", **more)[2] == 1
    backbone.processor.image_processor.image_mean = [0.3, 0.3, 0.3]
    assert train(backbone, studies, None, tmp_path / "c", tmp_path / "3", **more)[2] == 2 + 2


def test_the_key_is_the_content_of_the_images_in_order(studies, tmp_path):
    two = next(study for study in studies if len(study.images) == 2)
    copies = [tmp_path / f"copy{i}{path.suffix}" for i, path in enumerate(two.images)]
    for path, copy in zip(two.images, copies, strict=True):
        shutil.copy(path, copy)
    assert key_of(replace(two, id="other", images=tuple(copies))) == key_of(two)
    assert key_of(replace(two, images=tuple(copies[::-1]))) != key_of(two)
    film = two.images[0]
    lazy = [LazyImage("a", lambda: film), LazyImage("b", film.read_bytes)]
    alone = key_of(replace(two, images=(film,)))
    assert [key_of(replace(two, images=(one,))) for one in lazy] == [alone, alone]
    in_memory = [replace(two, images=(Image.open(path).convert("RGB"),)) for path in two.images]
    assert len({alone, *map(key_of, in_memory)}) == 3
    with pytest.raises(DiveError, match=r"cannot read the image \(1 of 1\): No such file"):
        key_of(replace(two, images=(Path("gone.png"),)))


def test_demonstrations_in_memory_are_kept(llava, studies):
    """Fixed demonstrations are decoded once; PIL images cannot be hashed."""
    shown = [replace(study, id=f"shown {study.id}", patient=None) for study in studies[4:6]]
    with Tower(llava) as tower:
        dive.distill(llava, studies[:2], shown, settings(cache_images=True), progress=False)
    assert tower.runs == 2 + 1 + 2  # two studies, one more for the verification, two demonstrations


def test_damaged_entries_are_made_anew_and_said(llava, studies, tmp_path, caplog):
    root = tmp_path / "c"
    first = train(llava, studies[:2], None, root, tmp_path / "1", preset="dive-ce", epochs=1)
    entry = sorted(root.glob("*/*/*.safetensors"))[0]
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-5])
    with caplog.at_level(logging.WARNING, "dive"):
        again = train(llava, studies[:2], None, root, tmp_path / "2", preset="dive-ce", epochs=1)
    assert "cannot be read and is made anew" in caplog.text
    assert again[2] == 1 and entry.read_bytes() == whole
    assert first[1] == again[1]


def test_nested_features_come_back_as_they_were():
    deep = {
        "pooler_output": [torch.randn(3, 2), torch.randn(1, 2)],
        "deepstack_features": [[torch.randn(2)] * 2 for _ in range(11)],
    }
    plain = {"pooler_output": torch.randn(2, 3, 4)}
    for value in (deep, plain):
        back = _nested(dict(_flat(value)))
        flat, wanted = _flat(back), _flat(value)
        assert [name for name, _ in flat] == [name for name, _ in wanted]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(flat, wanted, strict=True))


def _write_often(folder, name, value, count):
    # what FeatureStore.put does, without a model in this process
    from dive.files.atomic import write_bytes
    from dive.training.feature_store import save

    for _ in range(count):
        write_bytes(Path(folder) / name, save({"pooler_output": torch.full((64, 64), value)}))


def test_two_processes_never_leave_half_an_entry(llava, tmp_path):
    store = FeatureStore(tmp_path, Prompter(llava))
    key = "ab" * 32
    path = store._path(key)
    path.parent.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_write_often, args=(path.parent, path.name, float(value), 150))
        for value in (1, 2)
    ]
    for one in writers:
        one.start()
    seen = set()
    while any(one.is_alive() for one in writers):
        found = store.get(key)
        if found is not None:
            low, high = found["pooler_output"].aminmax()
            assert low == high
            seen.add(low.item())
    assert [one.exitcode for one in writers] == [0, 0]
    assert seen and seen <= {1.0, 2.0}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(
    llava,
    studies,
    tmp_path,
):
    (tmp_path / "file").write_text("x")
    config = settings(preset="dive-ce", cache_images=tmp_path / "file")
    with (
        Tower(llava) as tower,
        pytest.raises(DiveError, match=r"image cache .*file cannot be written"),
    ):
        dive.distill(llava, studies[:2], None, config, progress=False)
    assert tower.runs == 0
    for wrong in ("", 3):
        with pytest.raises(DiveError, match="cache_images is .*want true, false or a folder"):
            settings(cache_images=wrong)


def test_a_full_disk_is_said_once_and_costs_no_training(
    llava, studies, tmp_path, caplog, monkeypatch
):
    def full(path, data):
        raise DiveError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("dive.training.feature_store.write_bytes", full)
    with caplog.at_level(logging.WARNING, "dive"):
        *_, runs = train(
            llava, studies[:3], None, tmp_path / "c", tmp_path / "1", preset="dive-ce", epochs=2
        )
    assert runs == 2 + 3
    assert caplog.text.count("No space left on device") == 1


def test_an_offloaded_tower_cannot_name_a_cache(tiny_llava):
    import accelerate

    backbone = dive.load_backbone(tiny_llava, device="cpu")
    accelerate.cpu_offload(backbone.model.get_submodule("model.vision_tower"), torch.device("cpu"))
    with pytest.raises(DiveError, match="offloaded, and a cache on disk is named by the weights"):
        settings_of(Prompter(backbone))


def test_the_size_is_said_at_the_end(llava, studies, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "dive"):
        for number in range(2):
            train(
                llava, studies[:2], None, tmp_path / "c", tmp_path / str(number),
                preset="dive-ce", epochs=1,
            )  # fmt: skip
    said = [r.message for r in caplog.records if "entries of" in r.message]
    assert "0 studies read, 2 added; 2 entries of 0.0 MB" in said[0]
    assert "2 studies read, 0 added; 2 entries of 0.0 MB" in said[1]
