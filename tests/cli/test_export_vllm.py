"""`dive export-vllm`: folders, the line that serves them, and what a client must send."""

import json
import shlex

import pytest
import tiny
from command_line import call
from tiny_steering import randomised

import dive
from dive.errors import DiveError
from dive.vllm.exported import exported_sha256


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return dive.load_backbone(tiny.save_tiny_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture
def save(backbone, tmp_path):
    def saved(name, metadata=None, **settings):
        adapter = randomised(backbone, seed=len(name), **settings)
        adapter.metadata.update(metadata or {})
        adapter.save_pretrained(tmp_path / name)
        return tmp_path / name

    return saved


@pytest.fixture
def folder(backbone):
    return backbone.model.config._name_or_path


def words_of(output):
    """The command in the output, as a shell reads it."""
    command = output.split("\n\n")[0]
    return shlex.split(command.replace("\\\n", " "))


def test_one_adapter(save, folder, tmp_path):
    prompting = {"prompt": "What is seen?", "target": "impression", "eos_token_ids": [2, 5]}
    adapter = save("ward-a", prompting, rank=7, eps=1e-3)
    result = call("export-vllm", adapter, "--out", tmp_path / "out", "--backbone", folder)
    assert result.exit_code == 0
    words = words_of(result.stdout)
    assert words[:3] == ["vllm", "serve", folder]
    options = dict(zip(words[3::2], words[4::2], strict=False))
    assert json.loads(words[words.index("--hf-overrides") + 1]) == {
        "architectures": ["DiveLlavaForConditionalGeneration"],
        "dive_steering": {"eps": 1e-3},
    }
    assert words[words.index("--max-lora-rank") + 1] == "8"
    assert words[words.index("--lora-modules") + 1] == f"ward-a={tmp_path / 'out'}"
    assert words[words.index("--middleware") + 1] == "dive.vllm.Provenance"
    assert "--chat-template" not in words and "--revision" not in words
    assert "--enable-lora" in words and options["--hf-overrides"]
    assert (
        exported_sha256(tmp_path / "out")
        == dive.SteeringAdapter.from_pretrained(adapter).weights_sha256()
    )
    assert "writes impression" in result.stdout
    request = json.loads(result.stdout[result.stdout.index("{\n") : result.stdout.index("\n}") + 2])
    assert request["model"] == "ward-a" and request["temperature"] == 0
    assert request["stop_token_ids"] == [2, 5]
    assert request["add_special_tokens"] is True  # the template writes no bos
    image, text = request["messages"][0]["content"]
    assert image["type"] == "image_url" and text["text"] == "What is seen?"


def test_several_adapters_have_one_line(save, folder, tmp_path):
    a, b = save("a", rank=16), save("bb", rank=4)
    given = ("export-vllm", a, b, "--out", tmp_path / "out", "--backbone", folder, "--json")
    facts = json.loads(call(*given).stdout)
    words = facts["arguments"]
    at = words.index("--lora-modules")
    assert words[at + 1 : at + 3] == [
        f"a={tmp_path / 'out' / 'a'}",
        f"bb={tmp_path / 'out' / 'bb'}",
    ]
    assert words[words.index("--max-loras") + 1] == "2"
    assert words[words.index("--max-lora-rank") + 1] == "16"
    assert shlex.split(facts["command"]) == words
    for one in facts["adapters"]:
        assert exported_sha256(one["folder"]) == one["sha256"]
    # again into the same folders: the same files
    assert json.loads(call(*given).stdout) == facts


def test_an_own_template_is_the_servers(save, backbone, folder, tmp_path):
    own = backbone.processor.chat_template or backbone.tokenizer.chat_template
    own = "{# of this ward #}" + own
    adapter = save("a", {"template": own})
    out = tmp_path / "out"
    result = call("export-vllm", adapter, "--out", out, "--backbone", folder)
    words = words_of(result.stdout)
    assert words[words.index("--chat-template") + 1] == str(out / "chat_template.jinja")
    assert (out / "chat_template.jinja").read_text() == own


def test_a_template_with_its_own_bos(save, backbone, folder, tmp_path):
    own = backbone.processor.chat_template or backbone.tokenizer.chat_template
    adapter = save("a", {"template": "{{ bos_token }}" + own})
    given = ("export-vllm", adapter, "--out", tmp_path / "out", "--backbone", folder, "--json")
    [facts] = json.loads(call(*given).stdout)["adapters"]
    assert "add_special_tokens" not in facts["request"]


def test_a_date_of_training_is_in_the_template(save, backbone, folder, tmp_path):
    own = backbone.processor.chat_template or backbone.tokenizer.chat_template
    dated = "{{ strftime_now('%Y-%m-%d') }}" + own
    adapter = save("a", {"template": dated, "template_date": "2024-07-26"})
    call("export-vllm", adapter, "--out", tmp_path / "out", "--backbone", folder)
    written = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert "2024" in written and written.endswith(dated)


@pytest.mark.parametrize(
    "first, second, message",
    [
        ({}, {"activation": "tanh"}, "wants activation 'tanh'"),
        ({}, {"norm_preserving": True}, "wants norm_preserving True"),
        ({}, {"metadata": {"max_image_tokens": 7}}, None),
        ({}, {"metadata": {"template": "own"}}, "bb was trained with another chat template than a"),
        ({}, {"positions": "response"}, "bb: the adapter has positions 'response', and in vLLM"),
    ],
)
def test_what_cannot_share_a_server(save, backbone, folder, tmp_path, first, second, message):
    if "template" in second.get("metadata", {}):
        own = backbone.processor.chat_template or backbone.tokenizer.chat_template
        second = {"metadata": {"template": own + "{# #}"}}
    a, b = save("a", **first), save("bb", **second)
    given = ("export-vllm", a, b, "--out", tmp_path / "out", "--backbone", folder)
    if message is None:  # LLaVA has a fixed number of image tokens, whatever the budget
        assert call(*given).exit_code == 0
        return
    with pytest.raises(DiveError, match=message):
        call(*given)
    assert not (tmp_path / "out").exists()


def test_image_budgets_of_one_server(tmp_path):
    backbone = dive.load_backbone(tiny.save_tiny_qwen25_vl(tmp_path / "model"))
    for name, most in ("a", 1), ("b", 2):
        adapter = randomised(backbone)
        adapter.metadata["max_image_tokens"] = most
        adapter.save_pretrained(tmp_path / name)
    given = ("--out", tmp_path / "out", "--backbone", tmp_path / "model", "--json")
    facts = json.loads(call("export-vllm", tmp_path / "a", *given).stdout)
    words = facts["arguments"]
    size = json.loads(words[words.index("--mm-processor-kwargs") + 1])["size"]
    images = backbone.processor.image_processor
    assert size["longest_edge"] == 1 * (images.patch_size * images.merge_size) ** 2
    with pytest.raises(DiveError, match="b was trained with max_image_tokens 2, and a with 1"):
        call("export-vllm", tmp_path / "a", tmp_path / "b", *given)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--name", "none"], "the name 'none' is not usable"),
        (["--name", "a b"], "the name 'a b' is not usable"),
        (["--name", "x", "--name", "y"], "--name is given 2 times for 1 adapters"),
    ],
)
def test_names(save, folder, tmp_path, more, message):
    with pytest.raises(DiveError, match=message):
        call("export-vllm", save("a"), "--out", tmp_path / "o", "--backbone", folder, *more)


def test_an_unknown_backbone(save, tmp_path):
    with pytest.raises(DiveError, match="the adapter a does not know where its backbone is"):
        call("export-vllm", save("a"), "--out", tmp_path / "out")


def test_a_folder_of_another_adapter(save, folder, tmp_path):
    given = ("--out", tmp_path / "out", "--backbone", folder)
    call("export-vllm", save("a"), *given)
    with pytest.raises(DiveError, match="holds the adapter"):
        call("export-vllm", save("bb"), *given)
