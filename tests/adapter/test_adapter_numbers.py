"""Adapters with values that are not finite or too large are refused, with the tensor's name."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_steering import randomised

import dive
from dive.adapter.numbers import MOST_EDIT, check_numbers
from dive.errors import DiveError


@pytest.fixture(scope="module")
def backbone(tiny_llama):
    return dive.load_backbone(tiny_llama)


WRONG = [
    ("down", float("nan"), "layers.1.down holds numbers that are not finite"),
    ("down_bias", float("inf"), "layers.1.down_bias holds"),
    ("static", -float("inf"), "layers.1.static holds"),
    ("scale", float("nan"), "layers.1.scale holds"),
    ("sigma", float("nan"), "layers.1.sigma holds"),
    ("sigma", 0.0, r"layers.1.sigma is 0, want the RMS"),
    ("sigma", -1.0, r"layers.1.sigma is -1"),
    ("sigma", 1e30, r"layers.1.sigma is 1e\+30"),
    ("scale", 1e30, r"layers.1.scale is 1e\+30, want at most 2\^24"),
    ("scale", -1e8, r"layers.1.scale is -1e\+08"),
    ("static", 3e38, r"layers.1.static is too large"),
    ("up", 1e30, r"layers.1.up is too large: .* want at most 2\^24 times"),
    ("down", 1e37, r"layers.1.up is too large"),  # with `up` its edit, and no other tensor's
]


@pytest.mark.parametrize(("tensor", "value", "message"), WRONG)
def test_refused_at_load_and_where_it_is_attached(backbone, tmp_path, tensor, value, message):
    adapter = randomised(backbone, strength=0.3)
    adapter.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter.safetensors")
    changed = tensors[f"layers.1.{tensor}"]
    changed.view(-1)[-1:] = value
    save_file(tensors, tmp_path / "adapter.safetensors")
    with pytest.raises(DiveError, match=r"adapter\.safetensors: tensor " + message):
        dive.SteeringAdapter.from_pretrained(tmp_path)
    adapter.load_state_dict(tensors)  # as a training gone wrong leaves it
    for use in (
        lambda: dive.steer(backbone, adapter),
        lambda: dive.generate(backbone, ["x.png"], adapter=adapter),
        lambda: dive.decode.DecodeSession(backbone, adapter),
    ):
        with pytest.raises(DiveError, match="the adapter: tensor " + message):
            use()


@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh", "identity"])
def test_the_bound_is_one(backbone, activation):
    """The bound holds for states of the calibrated RMS, and one of them nearly reaches it."""
    from dive.adapter.numbers import _numbers

    torch.manual_seed(0)
    config = dive.SteeringConfig(rank=1, activation=activation, eps=1e-12)
    layer = dive.SteeringAdapter(config, backbone).layers["0"]
    with torch.no_grad():
        layer.up.normal_()
        layer.static.copy_(0.1 * layer.up[:, 0])
        layer.sigma.fill_(3.0)
    bound = _numbers(layer)[-2].item() * 3.0
    width = layer.static.numel()
    states = torch.randn(64, width)
    states = torch.cat([states, layer.down.detach()])  # the direction that moves it most
    states = 3.0 * states / states.square().mean(-1, keepdim=True).sqrt()
    most = (layer(states) - states).detach().abs().max().item()
    assert most <= bound * (1 + 1e-5)
    assert most >= 0.7 * bound


def test_the_largest_that_is_taken_keeps_states_finite(backbone):
    adapter = randomised(backbone, strength=0.3)
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.up.zero_()
            layer.static.fill_(MOST_EDIT * 0.99)
            layer.scale.fill_(1.0)
            layer.sigma.fill_(2.0**30)
    check_numbers(adapter)
    ids = {"input_ids": torch.tensor([[3, 4, 5]])}
    with dive.steer(backbone, adapter), torch.no_grad():
        assert backbone.model(**ids).logits.isfinite().all()
    assert math.log2(MOST_EDIT) == 24
