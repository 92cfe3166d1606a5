"""The line of `dive export-vllm`, run: answers over HTTP, adapters that come and go, refusals."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

import torch
from command_line import call
from safetensors.torch import save_file
from tiny_steering import randomised
from vllm_engines import TEXTS, Served, on_cpu, write_backbone
from vllm_server import data_url, film_of, refusal, serving

import dive
from dive.prompting.prompter import Prompter

on_cpu()

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A LLaVA with the adapters a, b, c and d, exported."""
    folder = tmp_path_factory.mktemp("served")
    backbone = dive.load_backbone(write_backbone("LLaVA", folder / "model"), dtype="float32")
    made = Served(folder, backbone)
    for seed, name in enumerate("abcd"):
        made.add(name, randomised(backbone, seed=seed, rank=4 + seed, strength=0.3))
    return made


@pytest.fixture(scope="module")
def facts(served, tmp_path_factory):
    """What dive export-vllm prints for a and b."""
    folder = tmp_path_factory.mktemp("line")
    for name in "ab":
        served.adapters[name].save_pretrained(folder / name)
    given = (folder / "a", folder / "b", "--out", folder / "out")
    result = call("export-vllm", *given, "--backbone", served.folder / "model", "--json")
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def line(facts):
    return facts["arguments"]


@pytest.fixture(scope="module")
def server(line, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(line, log, VLLM_ALLOW_RUNTIME_LORA_UPDATING="True") as found:
        yield found


def ask(server, name, text, seed, **more):
    return server.ask(name, text, film_of(seed), ignore_eos=True, return_token_ids=True, **more)


def check(served, reply, name, text, seed):
    """The tokens of transformers under `dive.steer`, and whose they are."""
    assert reply.status == 200, reply.body
    wanted = served.expected(served.image(text, seed), name)
    assert reply.json["choices"][0]["token_ids"] == wanted.ids
    sha256 = None if name is None else served.adapters[name].weights_sha256()
    assert (reply.adapter, reply.sha256) == (name or "none", sha256)
    assert reply.json["dive"] == {"adapter": name, "sha256": sha256}


def check_all(served, server):
    """The adapters of the line and the bare model answer as they should."""
    for name in ("a", "b", None):
        shown = name or str(served.folder / "model")
        check(served, ask(server, shown, TEXTS[0], 1), name, TEXTS[0], 1)


def test_the_adapters_differ(served):
    batch = [(name, served.image(TEXTS[0], 1)) for name in (None, *"abcd")]
    assert len({tuple(served.expected(one, name).ids) for name, one in batch}) == len(batch)


def test_an_image_and_an_adapter_by_its_name(served, server):
    check_all(served, server)


def test_the_printed_request_has_the_report_of_dive_generate(served, server, facts):
    study = dive.Study(id="1", images=(film_of(3),))
    for one in facts["adapters"]:
        [report] = dive.generate(
            served.backbone, [study], adapter=served.adapters[one["name"]], max_new_tokens=12
        )
        image = one["request"]["messages"][0]["content"][0]
        image["image_url"]["url"] = data_url(film_of(3))
        reply = server.post(CHAT, {**one["request"], "max_tokens": 12, "return_token_ids": True})
        prompt = Prompter(served.backbone).encode(study)["input_ids"][0].tolist()
        assert reply.json["prompt_token_ids"] == prompt
        # the texts of these tokens differ where single bytes are no UTF-8, which a report has not
        assert reply.json["choices"][0]["token_ids"] == report.token_ids


def test_adapters_and_none_at_once(served, server):
    names = {"a": "a", "b": "b", str(served.folder / "model"): None}
    asked = [(shown, text, seed) for seed in range(4) for text in TEXTS for shown in names]
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = list(pool.map(lambda one: ask(server, *one), asked))
    for reply, (shown, text, seed) in zip(replies, asked, strict=True):
        check(served, reply, names[shown], text, seed)


def test_a_stream_has_the_headers_and_its_own_body(served, server):
    whole = ask(server, "a", TEXTS[1], 2)
    stream = ask(server, "a", TEXTS[1], 2, stream=True)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert (stream.adapter, stream.sha256) == (whole.adapter, whole.sha256)
    events = stream.body.decode().split("\n\n")
    pieces = [json.loads(one.removeprefix("data: ")) for one in events[:-2]]
    assert events[-2:] == ["data: [DONE]", ""] and not any("dive" in one for one in pieces)
    deltas = [one["choices"][0]["delta"].get("content") or "" for one in pieces]
    assert "".join(deltas) == whole.text


def test_an_unknown_name(served, server):
    reply = ask(server, "ward-z", TEXTS[0], 1)
    assert reply.status == 404 and "ward-z" in reply.error and reply.adapter is None
    check_all(served, server)


def test_an_adapter_comes_goes_and_is_replaced(served, server):
    assert ask(server, "new", TEXTS[0], 1).status == 404
    for name in "cd":  # under the same name: the second replaces the first
        loaded = server.load("new", served.exported[name].folder)
        assert loaded.status == 200, loaded.body
        reply = ask(server, "new", TEXTS[0], 1)
        assert reply.json["choices"][0]["token_ids"] == (
            served.expected(served.image(TEXTS[0], 1), name).ids
        )
        assert reply.adapter == "new" and reply.sha256 == served.adapters[name].weights_sha256()
        check_all(served, server)
        assert server.unload("new").status == 200
        assert ask(server, "new", TEXTS[0], 1).status == 404


def _higher_rank(served, folder):
    _export(randomised(served.backbone, rank=20), served.folder / "model", folder)


def _other_settings(served, folder):
    adapter = randomised(served.backbone, rank=4, activation="tanh")
    _export(adapter, served.folder / "model", folder)


def _other_backbone(served, folder):
    path = write_backbone("Llama", folder.with_name(folder.name + "-model"))
    _export(randomised(dive.load_backbone(path), rank=4), path, folder)


def _further_trained(served, folder):
    path = folder.with_name(folder.name + "-model")
    shutil.copytree(served.folder / "model", path)
    other = dive.load_backbone(path, dtype="float32")
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.mul_(1.1)
    other.model.save_pretrained(path)
    _export(randomised(dive.load_backbone(path), rank=4), path, folder)


def _plain_lora(served, folder):
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): torch.zeros(4, 128), name.format("B"): torch.zeros(128, 4)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _not_there(served, folder):
    pass


def _export(adapter, backbone, folder):
    from dive.vllm.exported import export

    export(adapter, folder, backbone=backbone)


REFUSED = {
    _higher_rank: "rank 20 is greater than max_lora_rank 8",
    _other_settings: "wants activation 'tanh' (here 'silu')",
    _other_backbone: "belongs to another backbone",
    _further_trained: "was made on other weights",
    _plain_lora: "holds no adapter of dive's",
    _not_there: "holds no adapter of dive's",
}


@pytest.mark.parametrize("made", REFUSED, ids=lambda made: made.__name__.strip("_"))
def test_what_cannot_be_served_is_named_and_the_server_goes_on(served, server, made, tmp_path):
    made(served, tmp_path / "x")
    for _ in range(2):  # the second time as the first: nothing half loaded is left
        reply = server.load("x", tmp_path / "x")
        assert reply.status in (400, 500) and REFUSED[made] in reply.error, reply.body
        assert ask(server, "x", TEXTS[0], 1).status == 404
    check_all(served, server)


def test_an_adapter_is_not_changed_under_its_requests(served, server, tmp_path):
    reply = server.load("a", served.exported["c"].folder, load_inplace=True)
    assert reply.status == 400 and "load_inplace would change the adapter a" in reply.error
    for where in ("/v1/load_lora_adapter", "/adapters"):
        body = {"lora_name": "none", "lora_path": "x", "name": "none", "src": "x"}
        assert "an adapter is named none" in server.post(where, body).error
    check_all(served, server)


def test_other_contents_under_an_old_name_and_path(served, server, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(served.exported["c"].folder, folder)
    assert server.load("moved", folder).status == 200
    assert ask(server, "moved", TEXTS[0], 1).adapter == "moved"
    for file in served.exported["d"].folder.glob("adapter_*"):
        shutil.copy(file, folder / file.name)
    changed = ask(server, "moved", TEXTS[0], 1)  # loaded, and no longer what it was
    assert changed.status == 409 and "holds other contents" in changed.error
    assert server.unload("moved").status == 200
    again = server.load("moved", folder)
    assert again.status == 409 and "holds other contents" in again.error
    # under another name no state of the old ones is found
    assert server.load("moved-on", folder).status == 200
    reply = ask(server, "moved-on", TEXTS[0], 1)
    assert reply.sha256 == served.adapters["d"].weights_sha256()
    assert reply.json["choices"][0]["token_ids"] == (
        served.expected(served.image(TEXTS[0], 1), "d").ids
    )
    assert server.unload("moved-on").status == 200
    check_all(served, server)


def test_a_folder_that_is_gone(served, server, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(served.exported["c"].folder, folder)
    assert server.load("gone", folder).status == 200
    folder.rename(tmp_path / "y")
    reply = ask(server, "gone", TEXTS[0], 1)
    assert reply.status == 409 and "is gone" in reply.error
    check_all(served, server)
    (tmp_path / "y").rename(folder)
    assert ask(server, "gone", TEXTS[0], 1).status == 200
    assert server.unload("gone").status == 200


@pytest.mark.slow
def test_a_server_without_the_plugin_does_not_start(line, tmp_path):
    said = refusal(line, tmp_path / "log", VLLM_PLUGINS="")
    assert "Model architectures ['DiveLlavaForConditionalGeneration'] are not supported" in said


@pytest.mark.slow
def test_a_server_without_room_for_adapters_does_not_start(line, tmp_path):
    bare = line[: line.index("--enable-lora")] + line[line.index("--override-generation-config") :]
    assert "served without room for adapters" in refusal(bare, tmp_path / "log")


@pytest.mark.slow
def test_the_plain_model_refuses_the_adapters(tmp_path):
    """Of a Llama, whose checkpoint the plain class reads, too."""
    path = write_backbone("Llama", tmp_path / "model")
    randomised(dive.load_backbone(path, dtype="float32")).save_pretrained(tmp_path / "a")
    given = (tmp_path / "a", "--out", tmp_path / "out", "--backbone", path, "--json")
    words = json.loads(call("export-vllm", *given).stdout)["arguments"]
    at = words.index("--hf-overrides")
    said = refusal(words[:at] + words[at + 2 :], tmp_path / "log")
    assert "expected target modules in" in said
