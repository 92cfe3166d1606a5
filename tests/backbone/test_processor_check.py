"""Processors whose settings do not fit the model: filled in, or refused with both numbers."""

import json
import logging
import shutil

import pytest
import torch
from PIL import Image
from tiny_more import FAMILIES
from tiny_processors import changed, writer

import dive
from dive.backbone.processor_check import misfits
from dive.data import Study
from dive.errors import DiveError
from dive.prompting.prompter import Prompter


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return writer(tmp_path_factory)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_processor_as_it_is_shipped_has_no_misfit(folders, family):
    backbone = dive.load_backbone(folders(family))

    def never(*_args, **_kwargs):
        raise AssertionError("the vision tower need not run for this")

    backbone.model.base_model.get_image_features = never
    Prompter(backbone)
    assert misfits(backbone.processor, backbone) == []


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("LLaVA", {"patch_size": None}, "patch_size = 14"),
        ("LLaVA", {"vision_feature_select_strategy": None}, "strategy = 'default'"),
        ("LLaVA", {"num_additional_image_tokens": None}, "num_additional_image_tokens = 1"),
        # as the first LLaVA 1.5 repositories have it
        (
            "LLaVA",
            {
                "patch_size": None,
                "vision_feature_select_strategy": None,
                "num_additional_image_tokens": 0,
            },
            "vision_feature_select_strategy = 'default', patch_size = 14, "
            "num_additional_image_tokens = 1",
        ),
        ("LLaVA", {"image_token": None}, "image_token = '<image>'"),
        ("LLaVA-NeXT", {"patch_size": None}, "patch_size = 14"),
        ("LLaVA-OneVision", {"num_image_tokens": None}, "num_image_tokens = 16"),
        ("LLaVA-OneVision", {"vision_feature_select_strategy": None}, "strategy = 'full'"),
        ("InternVL", {"image_seq_length": None}, "image_seq_length = 4"),
        ("PaliGemma", {"image_seq_length": None}, "image_seq_length = 16"),
        ("Idefics3", {"image_seq_len": None}, "image_seq_len = 4"),
        ("Mistral 3", {"spatial_merge_size": None}, "spatial_merge_size = 2"),
        ("Qwen2-VL", {"image_processor.merge_size": None}, "image_processor.merge_size = 2"),
    ],
)
def test_what_is_not_set_is_the_models(folders, studies, family, settings, said, caplog):
    wanted = Prompter(dive.load_backbone(folders(family))).encode(studies[0])["input_ids"]
    backbone = changed(folders, family, settings)
    with caplog.at_level(logging.WARNING, "dive"):
        got = Prompter(backbone).encode(studies[0])["input_ids"]
        Prompter(backbone)
    assert got.tolist() == wanted.tolist()
    lines = [
        one.message for one in caplog.records if "taken from the model's config" in one.message
    ]
    assert len(lines) == 1 and lines[0].endswith(said)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            "LLaVA",
            {"num_additional_image_tokens": 0},
            "15 image tokens .* 16 features: num_additional_image_tokens is 0 and the model's "
            "config implies 1",
        ),
        ("LLaVA", {"patch_size": 7}, "64 image tokens .* 16 features: patch_size is 7 .* 14"),
        (
            "LLaVA",
            {"vision_feature_select_strategy": "full"},
            "17 image tokens .* 16 features: vision_feature_select_strategy is 'full' .*'default'",
        ),
        (
            "LLaVA",
            {"image_processor.crop_size": {"height": 42, "width": 42}},
            "image_processor.crop_size is 42 and the model's config implies 56",
        ),
        (
            "LLaVA",
            {
                "image_processor.do_center_crop": False,
                "image_processor.size": {"shortest_edge": 42},
            },
            "the model refuses what LlavaProcessor makes of an image .*doesn't match",
        ),
        ("LLaVA", {"image_token": "<s>"}, "image_token is '<s>' .* implies '<image>'"),
        ("LLaVA-NeXT", {"num_additional_image_tokens": 0}, "43 image tokens .* 44 features"),
        ("LLaVA-OneVision", {"num_image_tokens": 9}, "num_image_tokens is 9 .* implies 16"),
        ("Qwen2-VL", {"image_processor.merge_size": 1}, "24 image tokens .* 6 features: .*merge"),
        ("Qwen2.5-VL", {"image_processor.patch_size": 16}, "patch_size is 16 .* implies 14"),
        ("Gemma 3", {"image_processor.size": {"height": 42, "width": 42}}, "size is 42 .* 56"),
        ("InternVL", {"image_seq_length": 9}, "9 image tokens .* 4 features: image_seq_length"),
        ("PaliGemma", {"image_seq_length": 9}, "9 image tokens .* 16 features: image_seq_length"),
        ("Idefics3", {"image_seq_len": 9}, "9 image tokens .* 4 features: image_seq_len is 9"),
        ("Mistral 3", {"spatial_merge_size": 3}, "spatial_merge_size is 3 .* implies 2"),
    ],
)
def test_what_does_not_fit_is_named_before_an_image_is_read(folders, family, settings, message):
    backbone = changed(folders, family, settings)
    with pytest.raises(DiveError, match=message):
        dive.generate(backbone, ["no-such-film.png"])


def test_two_settings_that_make_up_for_each_other_are_left(folders, studies):
    settings = {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
    backbone = changed(folders, "LLaVA", settings)
    prompter, film = Prompter(backbone), Study("film", studies[0].images[:1])
    assert prompter.count_image_tokens(prompter.encode(film)) == 16
    assert len(misfits(backbone.processor, backbone)) == 2


def test_a_setting_that_changes_is_checked_anew(folders):
    backbone = changed(folders, "LLaVA", {})
    Prompter(backbone)
    backbone.processor.patch_size = 28
    with pytest.raises(DiveError, match="patch_size is 28"):
        Prompter(backbone)


def test_a_checkpoint_without_the_settings_loads_and_writes(folders, studies, tmp_path):
    folder = shutil.copytree(folders("LLaVA"), tmp_path / "old")
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        del settings[name]
    file.write_text(json.dumps(settings))
    old, new = dive.load_backbone(folder), dive.load_backbone(folders("LLaVA"))
    assert (old.processor.patch_size, old.processor.num_additional_image_tokens) == (14, 1)
    got, want = (dive.generate(one, studies[:1], max_new_tokens=5)[0] for one in (old, new))
    assert got.token_ids == want.token_ids and got.prompt_tokens == want.prompt_tokens


@pytest.mark.parametrize("family", ["LLaVA-NeXT", "LLaVA-OneVision"])
@pytest.mark.parametrize("grids", [[[56, 56]], [[112, 112]], None])
def test_grids_are_always_the_models(folders, family, grids, studies, caplog):
    """The model unpacks features by its own grids; others fit or not by an image's shape."""
    right = dive.load_backbone(folders(family))
    wanted = [one.token_ids for one in dive.generate(right, studies[:3], max_new_tokens=4)]
    backbone = changed(folders, family, {"image_processor.image_grid_pinpoints": grids})
    with caplog.at_level(logging.WARNING, logger="dive"):
        got = dive.generate(backbone, studies[:3], max_new_tokens=4)
    assert [one.token_ids for one in got] == wanted
    assert f"image_grid_pinpoints = {backbone.model.config.image_grid_pinpoints!r}" in caplog.text


@pytest.mark.parametrize("name", ["patch_size", "spatial_merge_size"])
def test_a_missing_setting_that_follows_an_images_shape_is_the_models(
    folders, tmp_path, studies, name, caplog
):
    """Its class would set a value of its own, with which some image sizes fit by chance."""
    folder = shutil.copytree(folders("Mistral 3"), tmp_path / "model")
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    wanted = settings.pop(name)
    file.write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING, "dive"):
        got = dive.load_backbone(folder)
    assert f"{name} = {wanted}" in caplog.text
    right = dive.load_backbone(folders("Mistral 3"))
    large = Study(id="large", images=(Image.effect_noise((200, 300), 60).convert("RGB"),))
    for study in (studies[0], large):
        one, other = (Prompter(each).encode(study) for each in (got, right))
        assert one["input_ids"].tolist() == other["input_ids"].tolist()
        assert torch.equal(one["pixel_values"], other["pixel_values"])


@pytest.mark.parametrize("patch", [13, 15])
def test_a_misfit_does_not_pass_by_the_size_of_one_image(folders, patch):
    backbone = changed(folders, "Mistral 3", {"patch_size": patch})
    with pytest.raises(DiveError, match=f"patch_size is {patch} and the model's config implies 14"):
        Prompter(backbone)


def test_the_callers_own_processor_stays_as_it_is(folders):
    backbone = changed(folders, "LLaVA", {"patch_size": None})
    prompter = Prompter(backbone)
    assert prompter.processor.patch_size == 14
    assert backbone.processor.patch_size is None
    assert Prompter(dive.load_backbone(folders("LLaVA"))).processor.patch_size == 14


@pytest.mark.parametrize("family", FAMILIES)
def test_the_id_of_the_image_token_is_the_models(folders, family, studies):
    right = dive.load_backbone(folders(family))
    wanted = Prompter(right).encode(studies[0])
    if "image_token_id" not in vars(right.processor):
        return
    got = Prompter(changed(folders, family, {"image_token_id": None})).encode(studies[0])
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("model, other", [("LLaVA", "LLaVA-NeXT"), ("LLaVA-NeXT", "LLaVA")])
def test_the_processor_of_another_family(folders, model, other):
    own = type(dive.load_backbone(folders(model)).processor).__name__
    backbone = dive.load_backbone(folders(model))
    backbone.processor = dive.load_backbone(folders(other)).processor
    with pytest.raises(DiveError, match=f"the processor of this model_type .* is {own}"):
        Prompter(backbone)


def test_what_no_image_can_pass_is_refused_before_a_study(folders, studies):
    backbone = changed(folders, "Idefics3", {"image_processor.do_convert_rgb": True})

    def never(*_args, **_kwargs):
        raise ValueError("no image has this")

    backbone.processor.image_processor.preprocess = never
    with pytest.raises(DiveError, match="Idefics3Processor cannot be used .*no image has this"):
        dive.generate(backbone, studies, on_error="skip")


def test_a_tokenizer_without_the_models_image_token_is_named(folders):
    """No token is made up from the tokenizer's result for an id that it does not have."""
    backbone = dive.load_backbone(folders("LLaVA"))
    token = backbone.model.config.image_token_id
    tokenizer = dive.load_backbone(folders("Qwen2.5-VL")).tokenizer
    assert tokenizer.convert_ids_to_tokens(token) is None
    backbone.processor.tokenizer = tokenizer
    with pytest.raises(DiveError, match=f"no token {token}, which is the model's image token"):
        Prompter(backbone)
    backbone.processor.image_token = None
    with pytest.raises(DiveError, match="names no image token"):
        Prompter(backbone)
