"""Adapters that a server cannot steer with are refused by name, and it goes on with the others."""

import json

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

import torch
from safetensors.torch import load_file, save_file
from tiny_steering import randomised
from vllm_engines import TEXTS, check_equal, on_cpu, serve, write_backbone

import dive
from dive.errors import DiveError
from dive.vllm.exported import Exported, export, server_arguments

on_cpu()

pytestmark = pytest.mark.vllm


def _of_another_backbone(served, folder):
    """An adapter of a model of the same form, further trained."""
    other = dive.load_backbone(write_backbone("Llama", folder / "other"), dtype="float32")
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.mul_(1.1)
    other.model.save_pretrained(folder / "other")
    other = dive.load_backbone(folder / "other", dtype="float32")
    return export(randomised(other, rank=4), folder / "C", backbone=folder / "other")


def _with_other_settings(served, folder):
    adapter = randomised(served.backbone, rank=4, activation="tanh")
    return export(adapter, folder / "C", backbone=served.folder / "model")


def _of_higher_rank(served, folder):
    adapter = randomised(served.backbone, rank=9)
    return export(adapter, folder / "C", backbone=served.folder / "model")


def _without(part):
    def made(served, folder):
        found = export(served.adapters["A"], folder / "C", backbone=served.folder / "model")
        path = found.folder / "adapter_model.safetensors"
        save_file({k: v for k, v in load_file(path).items() if part not in k}, path)
        return found

    return made


def _with_an_empty_card(served, folder):
    """As vLLM's dummies have it, and the numbers of a real adapter."""
    found = export(served.adapters["A"], folder / "C", backbone=served.folder / "model")
    path = found.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({k: v * 0 if "card" in k else v for k, v in tensors.items()}, path)
    return found


def _cut(served, folder):
    """The numbers of layer 1, less a column."""
    found = export(served.adapters["A"], folder / "C", backbone=served.folder / "model")
    path = found.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "layers.1." in name and "lora_A" in name)
    save_file({**tensors, name: tensors[name][:, 1:].contiguous()}, path)
    return found


def _a_plain_lora(served, folder):
    (folder / "C").mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {name.format("A"): torch.zeros(4, 128), name.format("B"): torch.zeros(128, 4)},
        folder / "C" / "adapter_model.safetensors",
    )
    config = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], "peft_type": "LORA"}
    (folder / "C" / "adapter_config.json").write_text(json.dumps(config))
    return Exported(folder / "C", "", 4, "", None)


REFUSED = {
    "other weights": (_of_another_backbone, "made on other weights"),
    "other settings": (_with_other_settings, r"wants activation 'tanh' \(here 'silu'\)"),
    "higher rank": (_of_higher_rank, "rank 9 is greater than max_lora_rank 8"),
    "no card": (_without("card"), "has no card"),
    "an empty card": (_with_an_empty_card, "card is empty"),
    "a layer less": (_without("layers.1."), "steers layer 1 and has no numbers for it"),
    "cut": (_cut, "are no layer of an adapter"),
    "a plain LoRA": (_a_plain_lora, "has no card"),
}


def test_what_cannot_be_served_is_named_and_the_server_goes_on(tmp_path):
    served = serve("Llama", tmp_path)
    batch = [(served.text(text), name) for name in (None, "A", "B") for text in TEXTS]
    wanted = [served.expected(request, name) for request, name in batch]
    with served.engine(max_loras=3) as engine:
        check_equal(served.generate(engine, batch), wanted)
        for number, (kind, (make, says)) in enumerate(REFUSED.items()):
            folder = tmp_path / str(number)
            folder.mkdir()
            served.exported[kind] = make(served, folder)
            for _ in range(2):  # the second time as the first: it is not taken for loaded
                with pytest.raises(Exception, match=says):
                    engine.llm_engine.add_lora(served.lora(kind))
            check_equal(served.generate(engine, batch), wanted)


def test_a_request_for_a_refused_adapter_is_no_unsteered_text(tmp_path):
    served = serve("Llama", tmp_path)
    other = tmp_path / "more"
    other.mkdir()
    with served.engine(max_loras=2) as engine:
        served.exported["C"] = _with_other_settings(served, other)
        with pytest.raises(Exception, match="wants activation"):
            served.generate(engine, [(served.text(TEXTS[0]), "C")])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"enable_lora": False}, "served without room for adapters"),
        ({"lora_target_modules": ["dive_steer", "q_proj"]}, "served without room for adapters"),
        ({"lora_target_modules": None}, "served without room for adapters"),
    ],
)
def test_a_server_that_could_not_steer_does_not_start(changes, says, tmp_path):
    served = serve("Llama", tmp_path)
    with pytest.raises(DiveError, match=says), served.engine(**changes):
        pass


def test_the_plain_architecture_refuses_an_adapter(tmp_path):
    served = serve("Llama", tmp_path)
    plain = {"hf_overrides": {}, "lora_target_modules": None, "max_loras": 1}
    with (
        served.engine(**plain) as engine,
        pytest.raises(Exception, match="expected target modules"),
    ):
        engine.llm_engine.add_lora(served.lora("A"))


def test_adapters_that_cannot_share_a_server(tmp_path):
    served = serve("Llama", tmp_path)
    other = _with_other_settings(served, tmp_path)
    with pytest.raises(DiveError, match="wants activation 'tanh'"):
        server_arguments([*served.exported.values(), other])


def test_an_adapter_of_the_response_alone_is_not_exported(tmp_path):
    served = serve("Llama", tmp_path)
    adapter = randomised(served.backbone, rank=4, positions="response")
    with pytest.raises(DiveError, match="positions 'response', and in vLLM"):
        export(adapter, tmp_path / "C", backbone=tmp_path / "model")


def test_a_folder_that_a_server_may_know_is_not_written_again(tmp_path):
    served = serve("Llama", tmp_path)
    given = {"backbone": tmp_path / "model"}
    folder = served.exported["A"].folder
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert export(served.adapters["A"], folder, **given) == served.exported["A"]
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(DiveError, match="holds the adapter .*, want a new folder"):
        export(served.adapters["B"], folder, **given)
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"dive_version": "', '"dive_version": "old-'))
    with pytest.raises(DiveError, match="as another version of dive wrote it"):
        export(served.adapters["A"], folder, **given)
