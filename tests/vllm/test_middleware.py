"""What the middleware says and refuses, around an application that stands in for vLLM's."""

import asyncio
import json
import shutil
from types import SimpleNamespace

import pytest
import tiny
from tiny_steering import randomised

import dive
from dive.vllm.exported import export
from dive.vllm.middleware import Provenance

JSON = (b"content-type", b"application/json")


class Models:
    """vLLM's record of adapters, as the middleware reads it."""

    def __init__(self):
        self.lora_requests = {}

    def is_base_model(self, name):
        return name == "base"

    def add(self, name, path):
        entry = SimpleNamespace(lora_name=name, lora_path=str(path))
        self.lora_requests[name] = entry


class Application:
    """Answers `body` in the pieces given; loads what it is asked to, unless `refuses`."""

    def __init__(self):
        self.state = SimpleNamespace(openai_serving_models=Models())
        self.pieces, self.status, self.headers = [b'{"id": "1"}'], 200, [JSON]
        self.seen, self.refuses, self.wait = [], False, None

    @property
    def models(self):
        return self.state.openai_serving_models

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.seen.append(body)
        status = self.status
        if scope["path"] == "/v1/load_lora_adapter":
            status = 500 if self.refuses else 200
            if not self.refuses:
                fields = json.loads(body)
                self.models.add(fields["lora_name"], fields["lora_path"])
        elif self.wait is not None:
            await self.wait.wait()
        length = (b"content-length", str(sum(map(len, self.pieces))).encode())
        headers = [*self.headers, length]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for index, piece in enumerate(self.pieces):
            more = index + 1 < len(self.pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})


class Client:
    """Posts to a middleware around an application."""

    def __init__(self):
        self.app = Application()
        self.served = Provenance(self.app)

    async def _post(self, path, body, headers=(JSON,), method="POST"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        halves = [data[:7], data[7:]]
        messages = [
            {"type": "http.request", "body": half, "more_body": index == 0}
            for index, half in enumerate(halves)
        ]
        sent = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": list(headers),
            "app": self.app,
        }
        await self.served(scope, receive, send)
        start, *bodies = sent
        answer = b"".join(one.get("body", b"") for one in bodies)
        found = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], found, answer

    def post(self, path, body, **more):
        return asyncio.run(self._post(path, body, **more))

    def ask(self, name, **more):
        return self.post("/v1/chat/completions", {"model": name, "messages": []}, **more)

    def load(self, name, path, **more):
        return self.post(
            "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path), **more}
        )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    backbone = dive.load_backbone(tiny.save_tiny_llama(folder / "model"))
    return {
        name: export(randomised(backbone, seed=seed), folder / name, backbone=folder / "model")
        for seed, name in enumerate("ab")
    }


@pytest.fixture
def client(exported):
    made = Client()
    made.app.models.add("ward-a", exported["a"].folder)
    return made


def test_an_adapter(client, exported):
    status, headers, body = client.ask("ward-a")
    sha256 = exported["a"].sha256
    assert status == 200
    assert (headers["x-dive-adapter"], headers["x-dive-adapter-sha256"]) == ("ward-a", sha256)
    assert json.loads(body) == {"dive": {"adapter": "ward-a", "sha256": sha256}, "id": "1"}
    assert body.endswith(b'"id": "1"}')  # not written anew
    assert headers["content-length"] == str(len(body))
    assert client.app.seen == [json.dumps({"model": "ward-a", "messages": []}).encode()]


@pytest.mark.parametrize("body", [{"model": "base"}, {"model": ""}, {"model": None}, {"x": 1}])
def test_the_bare_model(client, body):
    _, headers, answer = client.post("/v1/completions", body)
    assert headers["x-dive-adapter"] == "none" and "x-dive-adapter-sha256" not in headers
    assert json.loads(answer)["dive"] == {"adapter": None, "sha256": None}


def test_an_unknown_model_is_answered_by_vllm(client):
    client.app.status = 404
    status, headers, answer = client.ask("ward-z")
    assert (status, answer) == (404, b'{"id": "1"}') and "x-dive-adapter" not in headers


@pytest.mark.parametrize(
    ("status", "headers", "pieces"),
    [
        (200, [(b"content-type", b"text/event-stream; charset=utf-8")], [b"data: {}", b"\n\n"]),
        (200, [JSON, (b"content-encoding", b"gzip")], [b'{"a":', b"1}"]),
        (500, [JSON], [b'{"error": 1}']),
        (200, [JSON], [b"[1]"]),
        (200, [JSON], [b"{}"]),
        (200, [JSON], [b"", b""]),
    ],
)
def test_other_bodies_stay(client, status, headers, pieces):
    client.app.status, client.app.headers, client.app.pieces = status, headers, pieces
    found_status, found, body = client.ask("ward-a")
    assert (found_status, body) == (status, b"".join(pieces))
    assert found["x-dive-adapter"] == "ward-a"
    assert found["content-length"] == str(len(body))


def test_a_body_in_pieces(client):
    client.app.pieces = [b"", b'{"id"', b': "1"}']
    _, headers, body = client.ask("ward-a")
    assert json.loads(body)["id"] == "1" and json.loads(body)["dive"]["adapter"] == "ward-a"
    assert headers["content-length"] == str(len(body))


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (b"not JSON", {}),
        (b"[1, 2]", {}),
        (b"{}", {"headers": ((b"content-type", b"text/plain"),)}),
        (b"{}", {"method": "PUT"}),
    ],
)
def test_requests_without_a_model_are_left_alone(client, body, more):
    _, headers, answer = client.post("/v1/completions", body, **more)
    assert "x-dive-adapter" not in headers and answer == b'{"id": "1"}'
    assert client.app.seen == [body]


def test_a_name_that_is_no_header(client, exported):
    client.app.models.add("Station-ä\n", exported["a"].folder)
    _, headers, body = client.ask("Station-ä\n")
    assert headers["x-dive-adapter"] == "Station-%C3%A4%0A"
    assert json.loads(body)["dive"]["adapter"] == "Station-ä\n"


def test_the_header_that_names_the_model_of_an_invocation(client):
    named = (JSON, (b"x-amzn-sagemaker-adapter-identifier", b"ward-a"))
    _, headers, _ = client.post("/invocations", {"model": "base"}, headers=named)
    assert headers["x-dive-adapter"] == "ward-a"
    _, headers, _ = client.post("/v1/completions", {"model": "base"}, headers=named)
    assert headers["x-dive-adapter"] == "none"


def test_what_is_loaded(client, exported, tmp_path):
    status, _, body = client.load("b", exported["b"].folder)
    assert (status, body) == (200, b'{"id": "1"}')
    assert client.ask("b")[1]["x-dive-adapter-sha256"] == exported["b"].sha256
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none"):
        status, _, body = client.load("c", path)
        assert (
            status == 400 and "holds no adapter of dive's" in json.loads(body)["error"]["message"]
        )
    assert len(client.app.seen) == 2


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_changed_folder(client, exported, tmp_path, file):
    folder = tmp_path / "x"
    shutil.copytree(exported["a"].folder, folder)
    assert client.load("x", folder)[0] == 200
    shutil.copy(exported["b"].folder / file, folder / file)
    status, _, body = client.ask("x")
    assert status == 409 and "holds other contents" in json.loads(body)["error"]["message"]
    del client.app.models.lora_requests["x"]
    assert client.load("x", folder)[0] == 409
    shutil.copy(exported["a"].folder / file, folder / file)  # as it was
    assert client.load("x", folder)[0] == 200 and client.ask("x")[0] == 200


def test_a_folder_that_vllm_refused_may_change(client, exported, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(exported["a"].folder, folder)
    client.app.refuses = True
    assert client.load("x", folder)[0] == 500
    shutil.rmtree(folder)
    shutil.copytree(exported["b"].folder, folder)
    client.app.refuses = False
    assert client.load("x", folder)[0] == 200
    assert client.ask("x")[1]["x-dive-adapter-sha256"] == exported["b"].sha256


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("none", {}, "an adapter is named none"),
        ("ward-a", {"load_inplace": True}, "load_inplace would change the adapter ward-a"),
    ],
)
def test_loads_that_are_refused(client, exported, name, more, message):
    status, _, body = client.load(name, exported["b"].folder, **more)
    assert status == 400 and message in json.loads(body)["error"]["message"]
    assert client.app.seen == []


def test_a_name_is_not_loaded_again_while_its_requests_run(client, exported):
    async def both():
        client.app.wait = asyncio.Event()
        asked = asyncio.create_task(
            client._post("/v1/chat/completions", {"model": "ward-a", "messages": []})
        )
        while not client.app.seen:
            await asyncio.sleep(0.001)
        del client.app.models.lora_requests["ward-a"]
        body = {"lora_name": "ward-a", "lora_path": str(exported["b"].folder)}
        refused = await client._post("/v1/load_lora_adapter", body)
        client.app.wait.set()
        _, headers, _ = await asked
        return refused, headers, await client._post("/v1/load_lora_adapter", body)

    (status, _, body), headers, after = asyncio.run(both())
    assert status == 409 and "still run" in json.loads(body)["error"]["message"]
    assert headers["x-dive-adapter-sha256"] == exported["a"].sha256  # whose it was
    assert after[0] == 200


def test_a_request_that_waits_for_its_adapter(client, exported):
    async def both():
        client.app.wait = asyncio.Event()
        asked = asyncio.create_task(
            client._post("/v1/chat/completions", {"model": "b", "messages": []})
        )
        while not client.app.seen:
            await asyncio.sleep(0.001)
        body = {"lora_name": "b", "lora_path": str(exported["b"].folder)}
        loaded = await client._post("/v1/load_lora_adapter", body)
        client.app.wait.set()
        return loaded, await asked

    loaded, (_, headers, _) = asyncio.run(both())
    assert loaded[0] == 200 and headers["x-dive-adapter-sha256"] == exported["b"].sha256


def _start(app):
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    asyncio.run(Provenance(app)({"type": "lifespan", "app": app}, receive, send))
    return sent


def test_a_start(client, tmp_path):
    assert _start(client.app) == [{"type": "lifespan.startup.complete"}]
    client.app.models.add("c", tmp_path)
    [failed] = _start(client.app)
    assert failed["type"] == "lifespan.startup.failed"
    assert "holds no adapter of dive's" in failed["message"]


def test_a_vllm_whose_record_has_moved_does_not_start():
    [failed] = _start(SimpleNamespace(state=SimpleNamespace()))
    assert failed["type"] == "lifespan.startup.failed"
    assert "keeps its record of served adapters elsewhere" in failed["message"]
