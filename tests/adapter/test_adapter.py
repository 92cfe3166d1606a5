"""Settings, parameters, saving and loading of steering adapters."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

import dive
from dive.errors import DiveError


@pytest.fixture(scope="module")
def backbone(tiny_llama):
    return dive.load_backbone(tiny_llama)


def randomised(config, backbone, seed=0):
    """An adapter that does something, with other values in every tensor."""
    torch.manual_seed(seed)
    adapter = dive.SteeringAdapter(config, backbone)
    for tensor in adapter.state_dict().values():
        tensor.copy_(torch.randn_like(tensor).abs() * 0.3 + 0.01)
    return adapter


def test_initial_values_are_the_identity_and_repeat_under_a_seed(backbone):
    torch.manual_seed(3)
    one = dive.SteeringAdapter(dive.SteeringConfig(rank=64), backbone)
    torch.manual_seed(3)
    two = dive.SteeringAdapter(dive.SteeringConfig(rank=64), backbone)
    assert list(one.layers) == ["0", "1", "2"]
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])
        assert tensor.dtype == torch.float32
    layer = one.layers["1"]
    hidden = layer.static.numel()
    assert layer.down.shape == (64, hidden) and layer.up.shape == (hidden, 64)
    assert not layer.up.any() and not layer.static.any() and not layer.down_bias.any()
    assert layer.scale.item() == pytest.approx(0.1) and layer.sigma.item() == 1.0
    # N(0, 1/D): 2048 draws, so the spread is known to about 1.6 %
    assert layer.down.std().item() == pytest.approx(hidden**-0.5, rel=0.1)
    assert "sigma" not in dict(layer.named_parameters())


def test_rank_zero_learns_a_vector_and_a_scale_only(backbone):
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=0), backbone)
    trained = {name for name, p in adapter.named_parameters() if p.requires_grad}
    assert trained == {f"layers.{i}.{n}" for i in range(3) for n in ("static", "scale")}
    assert adapter.num_parameters() == 3 * (backbone.model.config.hidden_size + 1)


def test_num_parameters_counts_what_is_learned(backbone):
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=4, layers=[0, 2]), backbone)
    width = backbone.model.config.hidden_size
    assert adapter.num_parameters() == 2 * (4 * width + 4 + width * 4 + width + 1)
    assert list(adapter.layers) == ["0", "2"]


def test_parameters_are_float32_whatever_the_default_dtype(backbone):
    torch.set_default_dtype(torch.bfloat16)
    try:
        adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=4), backbone)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in adapter.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rank": -1}, "rank"),
        ({"rank": 2.5}, "rank"),
        ({"rank": True}, "rank"),
        ({"layers": "some"}, "layers"),
        ({"layers": []}, "layers"),
        ({"layers": [1, 1]}, "layers"),
        ({"layers": [-1]}, "layers"),
        ({"activation": "relu"}, "activation"),
        ({"positions": "prompt"}, "positions"),
        ({"norm_preserving": "yes"}, "norm_preserving"),
        ({"eps": 0.0}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"eps": 1e308}, "eps"),
        ({"eps": 3.5e38}, "eps"),
        ({"eps": 1e-300}, "eps"),
        ({"eps": 1e-38}, "eps"),
        ({"eps": 10**40}, "eps"),
        ({"eps": True}, "eps"),
    ],
)
def test_bad_settings_name_the_field(settings, named):
    with pytest.raises(DiveError, match=rf"SteeringConfig: {named} is"):
        dive.SteeringConfig(**settings)


def test_a_layer_that_the_backbone_lacks(backbone):
    with pytest.raises(DiveError, match="names 7, but the backbone has the layers 0 to 2"):
        dive.SteeringAdapter(dive.SteeringConfig(layers=[0, 7]), backbone)


@pytest.mark.parametrize(
    "config",
    [
        dive.SteeringConfig(rank=3),
        dive.SteeringConfig(rank=0, norm_preserving=True),
        dive.SteeringConfig(rank=2, layers=[2, 0], activation="tanh", positions="response"),
    ],
    ids=["low-rank", "fixed", "some-layers"],
)
def test_round_trip_is_bit_for_bit(config, backbone, tmp_path):
    adapter = randomised(config, backbone)
    adapter.metadata["prompt"] = "Describe the findings – bitte."
    adapter.metadata["eos_token_ids"] = [4, 2]
    adapter.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adapter.safetensors",
        "adapter_config.json",
    ]
    state = torch.random.get_rng_state()
    loaded = dive.SteeringAdapter.from_pretrained(tmp_path)
    assert torch.equal(state, torch.random.get_rng_state())
    assert loaded.config == config
    assert loaded.metadata == adapter.metadata
    assert loaded.state_dict().keys() == adapter.state_dict().keys()
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    trained = [p.requires_grad for p in adapter.parameters()]
    assert [p.requires_grad for p in loaded.parameters()] == trained
    loaded.check_backbone(backbone)


def test_files_are_plain_and_readable_by_others(backbone, tmp_path):
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=2), backbone)
    adapter.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["steering"]["rank"] == 2
    assert settings["metadata"]["backbone"]["architecture"] == "LlamaForCausalLM"
    assert load_file(tmp_path / "adapter.safetensors")["layers.0.up"].shape == (32, 2)
    umask = os.umask(0)
    os.umask(umask)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


def test_a_failed_save_leaves_the_older_adapter(backbone, tmp_path):
    adapter = randomised(dive.SteeringConfig(rank=2), backbone)
    adapter.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    adapter.metadata["prompt"] = {"not", "json"}
    with pytest.raises(DiveError, match="metadata is not plain JSON"):
        adapter.save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_another_backbone_is_refused_by_field(tiny_llava, backbone, tmp_path):
    adapter = randomised(dive.SteeringConfig(rank=2), backbone)
    with pytest.raises(DiveError, match="architecture is 'LlavaForConditionalGeneration' here"):
        adapter.check_backbone(dive.load_backbone(tiny_llava))
    backbone.model.config._commit_hash = "abc"
    try:
        adapter.check_backbone(backbone)  # trained where no revision was known
        for field, other in [("hidden_size", 64), ("num_layers", 5), ("revision", "def")]:
            mine = dict(adapter.metadata["backbone"])
            adapter.metadata["backbone"][field] = other
            with pytest.raises(DiveError, match=rf"another backbone: {field} is .* was {other!r}"):
                adapter.check_backbone(backbone.model)
            adapter.metadata["backbone"] = mine
    finally:
        backbone.model.config._commit_hash = None


def break_config(change):
    def act(folder):
        path = folder / "adapter_config.json"
        settings = json.loads(path.read_text())
        change(settings)
        path.write_text(json.dumps(settings))

    return act


def break_weights(change):
    def act(folder):
        path = folder / "adapter.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return act


def truncate(folder):
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json here"),
        (lambda f: (f / "adapter.safetensors").unlink(), "no adapter.safetensors here"),
        (
            lambda f: (f / "adapter_config.json").write_text("{"),
            "adapter_config.json: not readable",
        ),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "no entry 'steering'"),
        (break_config(lambda s: s.update(format=99)), "format is 99"),
        (break_config(lambda s: s["steering"].update(rang=3)), r"unknown settings.*rang"),
        (break_config(lambda s: s["steering"].update(rank=-2)), "rank is -2"),
        (
            break_config(lambda s: s["steering"].update(rank=5)),
            r"tensor layers.0.down is .*\[2, 32\]",
        ),
        (break_config(lambda s: s["metadata"].pop("backbone")), "metadata.backbone.hidden_size"),
        (truncate, "adapter.safetensors: not a readable safetensors file"),
        (break_weights(lambda t: t.pop("layers.1.up")), "tensor layers.1.up is missing"),
        (break_weights(lambda t: t.update(x=torch.ones(1))), "tensor x is not part of"),
        (
            break_weights(lambda t: t["layers.0.up"].fill_(float("nan"))),
            "layers.0.up holds numbers",
        ),
        (
            break_weights(lambda t: t.update({"layers.0.up": t["layers.0.up"].half()})),
            "layers.0.up is torch.float16",
        ),
    ],
)
def test_harmed_folders_give_one_clear_error(harm, message, backbone, tmp_path):
    randomised(dive.SteeringConfig(rank=2), backbone).save_pretrained(tmp_path)
    harm(tmp_path)
    with pytest.raises(DiveError, match=message):
        dive.SteeringAdapter.from_pretrained(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DiveError, match="is no folder, want that of an adapter"):
        dive.SteeringAdapter.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(DiveError, match="no such folder, and not on the hub"):
        dive.SteeringAdapter.from_pretrained("someone/no-such-adapter")
