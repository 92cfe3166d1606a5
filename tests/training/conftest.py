"""A backbone, and trainings that record their steps, for the tests of training."""

import pytest
from trainings import Recorder

import dive
from dive.training import loop


@pytest.fixture(scope="module")
def llava(tiny_llava):
    return dive.load_backbone(tiny_llava, device="cpu")


@pytest.fixture
def recorder(monkeypatch):
    Recorder.made = []
    monkeypatch.setattr(loop, "DistillTrainer", Recorder)
    return Recorder.made
