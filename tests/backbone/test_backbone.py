"""Loading backbones from folders: whole ones, processors without torchvision, and broken ones."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import draw_film
from tiny_more import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import is_torchvision_available

import dive
from dive.backbone import load as loading
from dive.errors import DiveError

without_torchvision = pytest.mark.skipif(
    is_torchvision_available(), reason="the full processor is loaded where torchvision is"
)


def test_every_family_loads_frozen_and_whole(any_backbone):
    model = any_backbone.model
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert any_backbone.dtype == torch.float32 and any_backbone.device.type == "cpu"
    assert any_backbone.tokenizer.is_fast
    if any_backbone.image_token_id is None:
        assert any_backbone.processor is any_backbone.tokenizer
    else:
        token = any_backbone.tokenizer.convert_ids_to_tokens(any_backbone.image_token_id)
        assert token in ("<image>", "<|image_pad|>", "<image_soft_token>")
        assert any_backbone.processor.image_processor is not None


@without_torchvision
def test_qwen_processor_is_composed_without_torchvision(tiny_qwen, caplog):
    with caplog.at_level(logging.INFO, logger="dive"):
        backbone = dive.load_backbone(tiny_qwen)
    said = [r.message for r in caplog.records if "torchvision" in r.message]
    assert len(said) == 1 and "Qwen2_5_VLProcessor is composed of image processor" in said[0]
    processor = backbone.processor
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert processor.video_processor is None and processor.chat_template
    film = draw_film(0, size=(96, 64), mode="RGB")
    encoded = processor(
        text=["<|vision_start|><|image_pad|><|vision_end|>"], images=[[film]], return_tensors="pt"
    )
    _, height, width = encoded["image_grid_thw"][0].tolist()
    image_tokens = int((encoded["input_ids"] == backbone.image_token_id).sum())
    assert image_tokens == height * width // 4 > 1
    assert encoded["pixel_values"].shape[0] == height * width


@without_torchvision
def test_a_composed_processor_saves_and_loads_again(tiny_qwen, tmp_path):
    first = dive.load_backbone(tiny_qwen)
    first.model.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    second = dive.load_backbone(tmp_path)
    film = draw_film(1, mode="RGB")
    text = "<|vision_start|><|image_pad|><|vision_end|>The lungs are clear."
    one, two = (
        backbone.processor(text=[text], images=[[film]], return_tensors="pt")
        for backbone in (first, second)
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert second.processor.chat_template == first.processor.chat_template


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_and_attention_are_what_was_asked_for(tiny_llava, dtype, caplog):
    with caplog.at_level(logging.INFO, logger="dive"):
        backbone = dive.load_backbone(
            tiny_llava, dtype=dtype, device="cpu", attn_implementation="eager"
        )
    assert backbone.dtype == torch.bfloat16
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}
    assert backbone.model.config._attn_implementation == "eager"
    assert "LlavaForConditionalGeneration in bfloat16 on cpu, attention eager" in caplog.text
    saved = dive.SteeringAdapter(dive.SteeringConfig(), backbone).metadata["backbone"]
    assert saved["attn_implementation"] == "eager"


def test_dtype_auto_is_the_checkpoints_own(tiny_llama, tmp_path):
    backbone = dive.load_backbone(tiny_llama, dtype="bfloat16")
    backbone.model.save_pretrained(tmp_path)
    backbone.processor.save_pretrained(tmp_path)
    assert dive.load_backbone(tmp_path).dtype == torch.bfloat16


def test_device_map_and_further_options_go_to_transformers(tiny_llama):
    backbone = dive.load_backbone(tiny_llama, device_map="cpu", use_safetensors=True)
    assert backbone.device.type == "cpu"


@pytest.mark.parametrize(
    ("family", "wanted"),
    [("llava", "flash_attention_2"), ("qwen", "flash_attention_2"), ("llama", "flash_attention_2"),
     ("llava_mistral", "flash_attention_2"), ("gemma", None)],
)  # fmt: skip
def test_flash_attention_only_for_causal_masks(family, wanted, request, monkeypatch):
    """The choice of "auto" on a GPU with flash-attn, which the test machine may not have."""
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: True)
    config = AutoConfig.from_pretrained(request.getfixturevalue(f"tiny_{family}"))
    auto = AutoModelForCausalLM if family == "llama" else AutoModelForImageTextToText
    assert loading._attention(auto, config, cuda=True) == wanted
    assert loading._attention(auto, config, cuda=False) is None


def remove(*patterns):
    def harm(folder: Path):
        found = [file for pattern in patterns for file in folder.glob(pattern)]
        assert found
        for file in found:
            file.unlink()

    return harm


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def weights(change):
    def harm(folder):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return harm


def lose(part):
    def change(tensors):
        names = [name for name in tensors if part in name]
        assert names
        for name in names:
            del tensors[name]

    return weights(change)


UP = "language_model.model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("family", "harm", "message"),
    [
        ("llava", remove("config.json"), "no config.json here, so this is not a saved model"),
        ("llava", write("config.json", b"{"), "cannot load the config: .*not a valid JSON"),
        ("llava", write("config.json", b"{}"), "cannot load the config: Unrecognized model"),
        ("llava", write("config.json", b'{"model_type": "t5"}'), "'t5' is neither an image-text"),
        ("llava", remove("model.safetensors"), "cannot load the model: .*no file named"),
        ("llava", truncate, "weights are not readable safetensors: .*file not fully covered"),
        ("llava", write("model.safetensors", b"junk"), "not readable safetensors: .*header"),
        ("llava", lose("layers.1.mlp.up_proj"), r"lacks 1 weights \(\S*1.mlp.up_proj.weight"),
        ("llava", lose("lm_head"), r"the checkpoint lacks 1 weights \(lm_head.weight"),
        ("llava", lose("vision_tower"), r"lacks \d\d weights \(model.vision_tower"),
        ("llava", lose("projector"), r"lacks 4 weights \(model.multi_modal_projector"),
        ("llava", weights(lambda t: t.update({UP: t[UP][:3].clone()})),
         r"1.mlp.up_proj.weight is \[3, 32\] in the checkpoint, want \[64, 32\]"),
        ("llava", remove("processor_config.json"), "cannot load the processor: .*image processor"),
        ("qwen", remove("processor_config.json"), "cannot load the processor: .*image processor"),
        ("gemma", remove("processor_config.json"), "cannot load the processor: .*image processor"),
        ("llava", remove("tokenizer*"), "cannot load the processor: .*tokenizer"),
        ("qwen", remove("tokenizer*"), "no tokenizer's files .*tokenizer.json"),
        ("gemma", remove("tokenizer*"), "cannot load the processor: GemmaTokenizer"),
        ("llama", remove("tokenizer*"), "cannot load the tokenizer: .*tokenizer"),
        ("llama", write("tokenizer.json", b"{"), "cannot load the tokenizer"),
    ],
)  # fmt: skip
def test_broken_folders_give_one_clear_error(family, harm, message, request, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(request.getfixturevalue(f"tiny_{family}"), folder)
    harm(folder)
    with pytest.raises(DiveError, match=message) as caught:
        dive.load_backbone(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_few_weights_outside_the_decoder_are_a_warning(tiny_llava, tmp_path, caplog):
    shutil.copytree(tiny_llava, tmp_path / "model")
    lose("vision_tower.post_layernorm")(tmp_path / "model")
    dive.load_backbone(tmp_path / "model")
    assert (
        "2 weights are not in the checkpoint and stay random: model.vision_tower.post"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "dtype is 'int3', want auto, bfloat16, float16, float32"),
        ({"dtype": "int8"}, "dtype is 'int8', want auto"),
        ({"device": "gpu0"}, "device is 'gpu0', want auto, cpu, cuda"),
        ({"device": "cuda:63"}, r"device is 'cuda:63', but torch \S+ sees \d+ CUDA devices"),
        ({"device": "cpu", "device_map": "cpu"}, "either device or device_map, not both"),
        ({"attn_implementation": "quick"}, "cannot load the model: .*attn_implementation"),
        ({"wibble": 3}, "cannot load the model: .*'wibble'"),
    ],
)
def test_bad_options(tiny_llama, options, message):
    with pytest.raises(DiveError, match=message):
        dive.load_backbone(tiny_llama, **options)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "a/b/c", Path("nowhere")])
def test_a_folder_that_is_not_there(path):
    with pytest.raises(DiveError, match="is no folder, want that of a backbone"):
        dive.load_backbone(path)


def test_a_file_is_no_folder_and_a_name_may_be_on_the_hub(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiveError, match="is no folder, want that of a backbone"):
        dive.load_backbone(str(tmp_path / "file"))
    with pytest.raises(DiveError, match="someone/no-such-model: cannot load the config"):
        dive.load_backbone("someone/no-such-model")


def setting(file, *path, to):
    """A value in one of a folder's JSON files."""

    def harm(folder):
        whole = json.loads((folder / file).read_text())
        part = whole
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = to
        (folder / file).write_text(json.dumps(whole))

    return harm


CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"


@pytest.mark.parametrize(
    ("family", "harm", "message"),
    [
        ("llava", setting(CONFIG, "text_config", "num_hidden_layers", to="3"),
         "cannot load the config: .*'num_hidden_layers'.*'3'"),
        ("llava", setting(CONFIG, "text_config", "vocab_size", to=None),
         "cannot load the config: .*'vocab_size'"),
        ("llava", setting(CONFIG, "text_config", "num_attention_heads", to=5),
         r"cannot load the config: .*attention heads \(5\)"),
        ("llava", setting(CONFIG, "text_config", "num_attention_heads", to=0), "cannot load the"),
        ("llava", setting(CONFIG, "vision_config", "patch_size", to=0), "cannot load the model"),
        ("llava", setting(CONFIG, "text_config", "hidden_act", to="no"), "model: KeyError: 'no'"),
        ("llava", setting(CONFIG, "vision_feature_layer", to=99),
         "vision_feature_layer in config.json is 99, want layers from -3 to 2"),
        ("llava", setting(CONFIG, "image_token_id", to=None),
         "image_token_id in config.json is None, want the id"),
        ("qwen", setting(CONFIG, "image_token_id", to=None), "'?image_token_id'?.* None"),
        ("gemma", setting(CONFIG, "image_token_id", to=None), "'?image_token_id'?.* None"),
        ("llava", setting(CONFIG, "text_config", "max_position_embeddings", to=0),
         "max_position_embeddings in config.json is 0, want a whole number >= 1"),
        ("llava", setting(GENERATION, "eos_token_id", to="x"),
         r"eos_token_id in generation_config.json is 'x', want token ids from 0 to \d+"),
        ("llama", setting(GENERATION, "eos_token_id", to=[1, "x"]), r"is \[1, 'x'\], want token"),
        ("llama", setting(GENERATION, "eos_token_id", to=10**7), "is 10000000, want token ids"),
        ("gemma", setting(TOKENIZER, "model_max_length", to="x"),
         "model_max_length in tokenizer_config.json is 'x', want a number >= 1"),
        ("llama", setting(TOKENIZER, "model_max_length", to=-3), "is -3, want a number >= 1"),
    ],
)  # fmt: skip
def test_settings_of_another_kind_are_told_when_they_are_loaded(
    family, harm, message, request, tmp_path
):
    test_broken_folders_give_one_clear_error(family, harm, message, request, tmp_path)


def test_an_internvl_that_selects_the_class_token_too(tmp_path):
    folder = FAMILIES["InternVL"](tmp_path / "model")
    setting(CONFIG, "vision_feature_select_strategy", to="full")(folder)
    with pytest.raises(DiveError, match="vision_feature_select_strategy .* is 'full', want 'def"):
        dive.load_backbone(folder)


PEFT = {"peft_type": "LORA", "base_model_name_or_path": "someone/medgemma"}


@pytest.mark.parametrize("with_config", [False, True])
def test_a_folder_of_pefts_alone(with_config, tiny_llava, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT))
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    if with_config:
        shutil.copy(tiny_llava / "config.json", tmp_path)
    with pytest.raises(DiveError, match=r"a PEFT adapter \(LORA\) of the base model someone/medg"):
        dive.load_backbone(tmp_path)


def test_an_adapter_of_ours_is_no_backbone(tiny_llava, tmp_path):
    backbone = dive.load_backbone(tiny_llava)
    dive.SteeringAdapter(dive.SteeringConfig(rank=2), backbone).save_pretrained(tmp_path)
    with pytest.raises(DiveError, match="a steering adapter, and no model; give its backbone's"):
        dive.load_backbone(tmp_path)
