"""Cached image features: the same training, and a vision tower that runs once per study."""

import logging
from dataclasses import replace

import pytest
import tiny
import torch
from tiny_features import Tower, load_family, settings, takes_features
from tiny_more import FAMILIES

import dive
from dive.backbone.structure import last_hidden_state
from dive.prompting.prompter import Prompter
from dive.training import image_features
from dive.training.image_features import ImageCache


@pytest.fixture(scope="session", params=FAMILIES)
def seeing(request, tmp_path_factory):
    return request.param, load_family(request.param, tmp_path_factory)


def distilled(backbone, studies, shots, **more):
    with Tower(backbone) as tower:
        adapter = dive.distill(backbone, studies, shots, settings(**more), progress=False)
    return adapter.state_dict(), tower.runs


def test_cached_images_train_the_same_adapter(seeing, studies):
    """The training is the same bit for bit over three epochs."""
    _, backbone = seeing
    more = {"preset": "dive-ce", "batch_size": 1}
    plain, runs = distilled(backbone, studies[:3], None, **more)
    kept, fewer = distilled(backbone, studies[:3], None, cache_images=True, **more)
    assert all(torch.equal(plain[name], kept[name]) for name in plain)
    assert max(plain[name].abs().max() for name in plain if name.endswith(".up")) > 1e-3
    assert runs == 2 + 9
    assert fewer == 3 + 1  # one per study, and one for the verification on the first


def test_cached_images_serve_teacher_and_batches(seeing, studies):
    """In some families the number of images per forward changes the tower's last bit, no more."""
    name, backbone = seeing
    plain, runs = distilled(backbone, studies[:4], 1)
    kept, fewer = distilled(backbone, studies[:4], 1, cache_images=True)
    assert max((plain[key] - kept[key]).abs().max().item() for key in plain) < 1e-6
    assert runs == 2 + 4 + 6
    # LLaVA-OneVision tiles a single image, and not the teacher's several
    assert fewer == 5 + (4 if name == "LLaVA-OneVision" else 0)


@pytest.fixture(scope="module")
def llava(tiny_llava):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    if not takes_features(backbone):
        pytest.skip("this transformers takes no image features")
    return backbone


def test_features_follow_their_study(llava, studies):
    """In another order and batch each prompt keeps its own images."""
    prompter = Prompter(llava)
    cache = ImageCache(prompter)
    batch = [prompter.encode(study) for study in studies[:3]]  # the third has two images
    for order in ([0, 1, 2], [2, 0, 1]):
        inputs = prompter.to_device(prompter.collate([batch[i] for i in order], side="right"))
        filled = cache.fill(inputs, [studies[i] for i in order])
        assert "pixel_values" in inputs and "pixel_values" not in filled
        with torch.no_grad():
            wanted, got = (last_hidden_state(llava, one) for one in (inputs, filled))
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    swapped = cache.fill(inputs, [studies[0], studies[2], studies[1]])
    with torch.no_grad():
        assert (last_hidden_state(llava, swapped) - wanted).abs().max() > 1e-2


def test_what_does_not_fit_is_computed_every_time(llava, studies, caplog):
    prompter = Prompter(llava)
    one = 16 * tiny.HIDDEN * 4  # bytes per image
    cache = ImageCache(prompter, capacity=one)
    with Tower(llava) as tower, caplog.at_level(logging.WARNING, "dive"):
        for _ in range(3):
            for study in studies[:2]:
                assert "mm_encoder_outputs" in cache.fill(
                    prompter.to_device(prompter.encode(study)), [study]
                )
    assert tower.runs == 1 + 3
    assert [r.message for r in caplog.records if "fill the cache" in r.message] == [
        "cache_images: the features of 1 studies fill the cache; the vision tower runs for the "
        "others"
    ]


def test_a_model_that_is_not_exact_goes_without(llava, studies, caplog, monkeypatch):
    own = ImageCache._compute
    monkeypatch.setattr(
        ImageCache,
        "_compute",
        lambda *a: image_features._map(own(*a), lambda tensor: tensor * 1.001),
    )
    with caplog.at_level(logging.WARNING, "dive"):
        assert image_features.image_cache(Prompter(llava), studies[0]) is None
    assert "computes something else from features" in caplog.text


def test_validation_runs_on_the_same_features(llava, studies):
    config = settings(preset="dive-ce", eval_steps=1, cache_images=True)
    with Tower(llava) as tower:
        dive.distill(llava, studies[:2], None, config, validation=studies[2:4], progress=False)
    assert tower.runs == 4 + 1


def test_a_model_without_such_an_input_goes_without_and_says_so(tiny_llava, studies, caplog):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    base = backbone.model.base_model
    own = base.forward
    base.forward = lambda input_ids=None, **more: own(input_ids=input_ids, **more)
    with caplog.at_level(logging.WARNING, "dive"):
        config = settings(preset="dive-ce", epochs=1, cache_images=True)
        dive.distill(backbone, studies[:2], None, config, progress=False)
    assert "takes no features in place of pixels" in caplog.text


def test_a_text_model_has_nothing_to_keep(tiny_llama, studies, caplog):
    backbone = dive.load_backbone(tiny_llama, device="cpu")
    texts = [replace(study, images=()) for study in studies[:4]]
    with caplog.at_level(logging.WARNING, "dive"):
        dive.distill(backbone, texts, 1, settings(epochs=1, cache_images=True), progress=False)
    assert "cache_images" not in caplog.text


def test_what_has_features_is_not_decoded_again(llava, studies, monkeypatch):
    """Examples with their pixels exceed the capacity here; without them they fit. Demonstrations
    are decoded with their query, and not by the process that trains."""
    from dive.training import examples as module
    from dive.training.examples import Examples

    made, alone = [], []
    make, encode = Examples.make, Prompter.encode_any_length
    monkeypatch.setattr(Examples, "make", lambda *a: (made.append(a[1]), make(*a))[1])
    small = sum(t.numel() * t.element_size() for t in Prompter(llava).encode(studies[0]).values())
    monkeypatch.setattr(module, "CACHE_BYTES", small // 2)
    with_model_settings = settings(preset="dive-ce", batch_size=2, epochs=3, calibration_studies=1)
    plain = dive.distill(llava, studies[:4], None, with_model_settings, progress=False).state_dict()
    assert sorted(made) == sorted([0, *[0, 1, 2, 3] * 3])
    made.clear()
    config = settings(
        preset="dive-ce", batch_size=2, epochs=3, calibration_studies=1, cache_images=True
    )
    kept = dive.distill(llava, studies[:4], None, config, progress=False).state_dict()
    assert len(made) <= 4 + 2  # once each; the first for verification and calibration, too
    assert max((plain[key] - kept[key]).abs().max().item() for key in plain) < 1e-6

    monkeypatch.setattr(
        Prompter, "encode_any_length",
        lambda self, study, shown=(): (alone.append((study.id, len(shown))), encode(
            self, study, shown))[1],
    )  # fmt: skip
    config = settings(batch_size=2, epochs=2, calibration_studies=1, cache_images=True, workers=1)
    dive.distill(llava, studies[:4], 1, config, progress=False)
    # the rest is in the worker: here only blank images, and the first study
    assert {name for name, _ in alone} <= {"a blank image", studies[0].id}
