"""What the tests of kept image features share."""

import inspect

import pytest
import transformers
from packaging.version import Version
from tiny_more import FAMILIES
from transformers.utils import is_torchvision_available

import dive
from dive.backbone.structure import unwrap


def takes_features(backbone):
    forward = unwrap(backbone).base_model.forward
    return "mm_encoder_outputs" in inspect.signature(forward).parameters


def needs(name):
    """Skips where this transformers cannot make the family's processor, or dive refuses it."""
    recent = Version(transformers.__version__) >= Version("5.23")
    if name == "SmolVLM":
        pytest.importorskip("num2words", reason="SmolVLM's processor wants it")
    if name in ("Idefics3", "SmolVLM") and not (is_torchvision_available() or recent):
        pytest.skip("this transformers has no image processor of theirs without torchvision")
    if name == "PaliGemma 2" and not recent:
        pytest.skip("this transformers leaves out the head's soft-cap, so dive refuses the model")


def load_family(name, tmp_path_factory):
    """A tiny backbone of the family, where this transformers takes features at all."""
    if name == "SmolVLM":
        pytest.importorskip("num2words", reason="SmolVLM's processor wants it")
    if Version(transformers.__version__) < Version("5.23"):
        pytest.skip("this transformers takes no image features")
    folder = FAMILIES[name](tmp_path_factory.mktemp("seeing"))
    return dive.load_backbone(folder, device="cpu")


class Tower:
    """Counts how often a model looks at pixels."""

    def __init__(self, backbone):
        vision = ("vision_tower", "visual", "vision_model")
        base = backbone.model.base_model
        module = next(getattr(base, name) for name in vision if hasattr(base, name))
        self.runs = 0
        self._handle = module.register_forward_hook(self._count)

    def _count(self, *_):
        self.runs += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._handle.remove()


def settings(**more):
    return dive.DistillConfig(
        **{"rank": 2, "epochs": 3, "batch_size": 2, "calibration_studies": 2, "warmup": 0.0} | more
    )
