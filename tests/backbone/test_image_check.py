"""Settings of an image processor that are wrong for any model, and unusable pixels."""

import logging
import warnings

import numpy as np
import pytest
from tiny_more import FAMILIES
from tiny_processors import changed, writer

import dive
from dive.errors import DiveError
from dive.prompting.prompter import Prompter


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return writer(tmp_path_factory)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_processor_as_it_is_shipped_is_warned_of_nothing(folders, family, caplog):
    backbone = dive.load_backbone(folders(family))
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "dive"):
        warnings.simplefilter("error", UserWarning)
        Prompter(backbone)
    assert not [one for one in caplog.records if "torchvision" not in one.message]


@pytest.mark.parametrize(
    "value", [{"shortest_edge": 3136}, {"height": 56, "width": 56}, {}, None, 28, {"x": "y"}]
)
def test_qwens_size_wants_both_edges(folders, value):
    backbone = changed(folders, "Qwen2.5-VL", {"image_processor.size": value})
    with pytest.raises(
        DiveError, match=r"image_processor\.size is .* want a dict such as .*longest"
    ):
        Prompter(backbone, max_image_tokens=None)


@pytest.mark.parametrize(
    ("family", "name", "value", "said"),
    [
        ("LLaVA", "image_processor.crop_size", 28, "crop_size is 28, want a dict"),
        ("Gemma 3", "image_processor.size", 28, "size is 28, want a dict"),
        ("Gemma 3", "image_processor.size", {"height": 0, "width": 0}, "want a dict"),
        ("InternVL", "image_processor.size", "28", "size is '28', want a dict"),
        ("Mistral 3", "image_processor.size", None, "size is None, want a dict"),
        ("LLaVA", "image_processor.crop_size", {"height": 56}, "crop_size is .*, want a dict"),
        ("LLaVA", "image_processor.size", {"height": 56}, "size is .*, want a dict such as"),
        ("Gemma 3", "image_processor.do_center_crop", True, "crop_size is None, want .* height"),
        ("Idefics3", "image_processor.max_image_size", None, "max_image_size is None, want"),
        ("SmolVLM", "image_processor.max_image_size", {"longest_edge": 0}, "max_image_size is"),
        ("Idefics3", "image_processor.size", {"height": 56, "width": 28}, "size is .*longest"),
        ("Mistral 3", "image_processor.do_resize", False, "do_resize is False, want True"),
        ("LLaVA", "image_processor.resample", 99, "resample is 99, want a filter of PIL"),
        ("Mistral 3", "image_processor.resample", "bicubic", "resample is 'bicubic', want"),
        ("Gemma 3", "image_processor.resample", None, "resample is None, want a filter"),
        ("LLaVA", "image_processor.rescale_factor", "x", "rescale_factor is 'x', want a finite"),
        ("Gemma 3", "image_processor.rescale_factor", float("nan"), "rescale_factor is nan"),
        ("Qwen2.5-VL", "image_processor.rescale_factor", -1 / 255, "rescale_factor is -0.0"),
        ("LLaVA", "image_processor.image_std", [0, 0, 0], "image_std is .* above 0"),
        ("InternVL", "image_processor.image_std", [1.0], "image_std is .1.0., want 3 finite"),
        ("PaliGemma", "image_processor.image_mean", [0.5, float("inf"), 0.5], "image_mean is"),
        ("Mistral 3", "patch_size", "14", "patch_size is '14', want a whole number.* implies 14"),
        ("Mistral 3", "patch_size", [14, 14], "patch_size is .14, 14., want a whole number"),
        ("LLaVA", "patch_size", -14, "patch_size is -14, want a whole number"),
        ("LLaVA", "chat_template", 3, "chat_template is 3, want a Jinja"),
        ("Qwen2.5-VL", "chat_template", {"default": ["x"]}, "chat_template is .*, want a Jinja"),
        ("LLaVA", "tokenizer", None, "LlavaProcessor has no tokenizer"),
    ],
)
def test_settings_of_another_kind(folders, family, name, value, said):
    with pytest.raises(DiveError, match=said):
        Prompter(changed(folders, family, {name: value}))


def test_an_image_processor_is_no_processor(folders, studies):
    backbone = dive.load_backbone(folders("LLaVA"))
    images = backbone.processor.image_processor
    with pytest.raises(DiveError, match=f"{type(images).__name__} has no tokenizer"):
        dive.generate(backbone.model, studies[:1], processor=images)


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("LLaVA", {"size": {"shortest_edge": 28}}, "shortest_edge 28, .* is 56: .* a black frame"),
        ("LLaVA", {"size": {"shortest_edge": 224}}, "shortest_edge 224, .*: .* only the middle"),
        ("LLaVA-NeXT", {"size": {"shortest_edge": 112}}, "shortest_edge 112, .* only the middle"),
        ("LLaVA", {"size": {"height": 56, "width": 28}}, "squeezed .*, and images get a black fr"),
        ("LLaVA-NeXT", {"size": {"height": 56, "width": 28}}, "height 56 and width 28, .*squeezed"),
        ("LLaVA", {"size": {"height": 112, "width": 112}}, "height 112 .* only the middle"),
        ("LLaVA", {"do_resize": False}, "do_resize is False, and crop_size is 56: .*the middle"),
        ("LLaVA", {"do_rescale": False}, "pixels from -1.79 to 974 .*: .*do_rescale is False"),
        ("Qwen2.5-VL", {"do_rescale": None}, "pixels from .* to 974 .*: .*do_rescale is None"),
        ("Gemma 3", {"rescale_factor": 1.0}, "pixels from -1 to 509 .*: .*rescale_factor is 1.0"),
        ("Mistral 3", {"rescale_factor": 1e-6}, "pixels from .*: .*rescale_factor is 1e-06"),
        ("Idefics3", {"do_normalize": False}, "do_normalize is False, and it is on in Idefics3"),
    ],
)
def test_settings_that_cannot_be_meant_warn(folders, family, settings, said):
    settings = {f"image_processor.{name}": value for name, value in settings.items()}
    with pytest.warns(UserWarning, match=said):
        Prompter(changed(folders, family, settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 56, "width": 56}},
        {"size": {"shortest_edge": np.int64(56)}},
        {"image_mean": 0.5, "image_std": 0.5},
        {"image_mean": np.array([0.5] * 3), "image_std": np.array([0.5] * 3)},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    ],
)
def test_settings_that_are_good_are_taken(folders, settings):
    settings = {f"image_processor.{name}": value for name, value in settings.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Prompter(changed(folders, "LLaVA", settings))


def test_pixels_that_are_not_finite(folders, studies):
    """For any setting: here one that has no check of its own."""
    backbone = changed(folders, "LLaVA", {})
    images = backbone.processor.image_processor
    images.normalize = lambda image, *_args, **_kwargs: image * np.float32("nan")
    with pytest.raises(DiveError, match="LlavaProcessor makes pixels that are not finite"):
        dive.generate(backbone, studies, on_error="skip")


@pytest.mark.parametrize(
    ("family", "mark", "value", "said"),
    [
        ("Idefics3", "fake_image_token", None, "fake_image_token is None, want a special token"),
        ("SmolVLM", "fake_image_token", None, "fake_image_token is None, want"),
        ("Idefics3", "global_image_tag", None, "global_image_tag is None, want"),
        ("SmolVLM", "global_image_token", None, "global_image_token is None, want"),
        ("InternVL", "start_image_token", None, "is None, want '<img>', which is the tokenizer's"),
        ("InternVL", "end_image_token", "x", "end_image_token is 'x', want '</img>'"),
        ("InternVL", "end_image_token", "<img>", "end_image_token is '<img>', want '</img>'"),
        ("Mistral 3", "image_break_token", "x", "image_break_token is 'x', want a special token"),
        ("Mistral 3", "image_break_token", "</s>", "is '</s>', the tokenizer's eos_token"),
        ("Mistral 3", "image_end_token", "[IMG_BREAK]", "'.IMG_BREAK.', as image_break_token is"),
        ("Mistral 3", "image_end_token", "[IMG]", "'.IMG.', as image_token is"),
        ("Gemma 3", "boi_token", None, "boi_token is None, want '<start_of_image>'"),
    ],
)
def test_marks_around_images_are_special_tokens(folders, family, mark, value, said):
    with pytest.raises(DiveError, match=f"Processor: .*{said}"):
        Prompter(changed(folders, family, {mark: value}))


@pytest.mark.parametrize("switch", [True, False, None])
def test_tiles_are_off_under_a_budget_whatever_the_image_processor_says(folders, studies, switch):
    """InternVL's processor requests tiles even where its image processor does not."""
    backbone = changed(folders, "InternVL", {"image_processor.crop_to_patches": switch})
    prompter = Prompter(backbone)
    assert prompter.count_image_tokens(prompter.encode(studies[0])) == 4 * len(studies[0].images)
