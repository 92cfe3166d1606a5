"""What a server of vLLM says of the adapters that it answers with, and which it refuses to load.

An ASGI middleware, given to vLLM by its own option:
`--middleware dive.vllm.Provenance`. Without it adapters steer just the same.

Every response to a request with a model has the header x-dive-adapter: the adapter's name
(percent-encoded where it is not ASCII), or "none" for the bare model; and x-dive-adapter-sha256, of
the adapter's own adapter.safetensors. A JSON response that is not streamed also begins with an
entry "dive" of the same.

An adapter is loaded once under its name and path: vLLM's prefix cache knows no more of it, and its
requests in one batch are told apart by that name alone (LoRARequest.__hash__).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dive.errors import DiveError
from dive.vllm.installed import moved
from dive.vllm.served_folders import Contents, check_unchanged, contents_of

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ADAPTER, SHA256 = b"x-dive-adapter", b"x-dive-adapter-sha256"
NONE = "none"
# the routes that load an adapter: where its name and its folder are in the body
_LOADS = {"/v1/load_lora_adapter": ("lora_name", "lora_path"), "/adapters": ("name", "src")}
# by this header /invocations names the model in the body's stead
_HEADED, _MODEL_HEADER = "/invocations", b"x-amzn-sagemaker-adapter-identifier"


@dataclass
class _Request:
    """A request that is being answered.

    entry: vLLM's LoRARequest of its adapter, once known. send: takes its response.
    """

    entry: Any
    send: Send


class Provenance:
    """The middleware; one for each process that serves the API."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        # by name and path, for as long as the process lives: so long live vLLM's cached states
        self._contents: dict[tuple[str, str], Contents] = {}
        self._running: dict[str, list[_Request]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._start(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "POST" and _is_json(scope):
            await self._answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _start(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Notes what the adapters of --lora-modules are, or ends the server with the reason."""
        try:
            for entry in _models(scope).lora_requests.values():
                await self._contents_of(entry)
        except DiveError as error:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, again = await _whole(receive)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        fields = _fields(body)
        if fields is None:
            await self.app(scope, again, send)
        elif path in _LOADS:
            name, folder = (fields.get(one) for one in _LOADS[path])
            if not (isinstance(name, str) and isinstance(folder, str) and name and folder):
                await self.app(scope, again, send)  # vLLM names what is missing
                return
            await self._load(scope, again, send, name, folder, fields)
        else:
            headed = dict(scope["headers"]).get(_MODEL_HEADER) if path == _HEADED else None
            name = headed.decode("latin-1") if headed else fields.get("model")
            await self._answer_as(scope, again, send, name)

    async def _answer_as(self, scope: Scope, receive: Receive, send: Send, name: Any) -> None:
        """A request with a model's name, which is an adapter's, or the bare model's."""
        models = _models(scope)
        if not isinstance(name, str) or not name or models.is_base_model(name):
            await self.app(scope, receive, _Labelled(send, NONE, None))
            return
        request = _Request(models.lora_requests.get(name), send)
        self._running.setdefault(name, []).append(request)
        try:
            if request.entry is not None:
                try:
                    await self._check(request.entry)
                except DiveError as error:
                    await _refuse(send, 409, f"the adapter {name}: {error}")
                    return

            async def labelled(message: Message) -> None:
                if message["type"] == "http.response.start":
                    # one that vLLM has only now found, by a resolver or while it was being loaded
                    entry = request.entry or models.lora_requests.get(name)
                    if entry is not None:
                        contents = await self._contents_of(entry)
                        request.send = _Labelled(send, name, contents.sha256)
                await request.send(message)

            await self.app(scope, receive, labelled)
        finally:
            self._running[name].remove(request)
            if not self._running[name]:
                del self._running[name]

    async def _load(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        name: str,
        path: str,
        fields: dict[str, Any],
    ) -> None:
        models, key = _models(scope), (name, path)
        if name == NONE:
            await _refuse(send, 400, f"an adapter is named {name}, want a name of its own")
            return
        if fields.get("load_inplace"):
            await _refuse(
                send,
                400,
                f"load_inplace would change the adapter {name} under requests that run, want it "
                "unloaded and then loaded from a new folder, or loaded under another name",
            )
            return
        if name not in models.lora_requests and any(
            one.entry is not None for one in self._running.get(name, ())
        ):
            await _refuse(
                send,
                409,
                f"requests to the adapter {name} that was unloaded still run, want it loaded when "
                "they are done, or under another name",
            )
            return
        loaded = self._contents.get(key)
        try:
            if loaded is None:
                contents = await asyncio.to_thread(contents_of, path)
            else:
                contents = await asyncio.to_thread(check_unchanged, path, loaded)
        except DiveError as error:
            await _refuse(send, 400 if loaded is None else 409, f"the adapter {name}: {error}")
            return
        self._contents.setdefault(key, contents)
        watched = _Watched(send)
        await self.app(scope, receive, watched)
        if watched.status == 200:
            for one in self._running.get(name, ()):
                one.entry = one.entry or models.lora_requests.get(name)
        elif loaded is None and name not in models.lora_requests:
            self._contents.pop(key, None)  # nothing was computed with it

    async def _check(self, entry: Any) -> None:
        """Raises DiveError where the folder of a loaded adapter is not what was loaded."""
        loaded = await self._contents_of(entry)
        key = entry.lora_name, entry.lora_path
        self._contents[key] = await asyncio.to_thread(check_unchanged, entry.lora_path, loaded)

    async def _contents_of(self, entry: Any) -> Contents:
        key = entry.lora_name, entry.lora_path
        if key not in self._contents:
            contents = await asyncio.to_thread(contents_of, entry.lora_path)
            self._contents.setdefault(key, contents)
        return self._contents[key]


class _Watched:
    """Passes messages on, and keeps the status of the response."""

    def __init__(self, send: Send) -> None:
        self._send, self.status = send, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


class _Labelled:
    """Passes a response on with the headers, and the entry in a JSON object that is not streamed.

    The entry goes behind the body's first brace: no other byte of it changes.
    """

    def __init__(self, send: Send, name: str, sha256: str | None) -> None:
        self._send = send
        self._headers = [(ADAPTER, quote(name, safe=" !#$&'()*+,/:;=?@[]").encode())]
        if sha256 is not None:
            self._headers.append((SHA256, sha256.encode()))
        facts = {"adapter": None if sha256 is None else name, "sha256": sha256}
        self._entry = f'"dive":{json.dumps(facts)},'.encode()
        self._held: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
            if _is_whole_json(message):
                self._held = message  # its length is known with the first bytes of its body
                return
        elif message["type"] == "http.response.body" and self._held is not None:
            body = message.get("body", b"")
            if not body and message.get("more_body"):
                return
            start, self._held = self._held, None
            if body.startswith(b'{"'):
                start["headers"] = [_longer(one, len(self._entry)) for one in start["headers"]]
                message = {**message, "body": b"{" + self._entry + body[1:]}
            await self._send(start)
        await self._send(message)


def _longer(header: tuple[bytes, bytes], more: int) -> tuple[bytes, bytes]:
    name, value = header
    return (name, str(int(value) + more).encode()) if name.lower() == b"content-length" else header


def _is_whole_json(start: Message) -> bool:
    headers = {name.lower(): value for name, value in start["headers"]}
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    good = start["status"] == 200 and kind == b"application/json"
    return good and b"content-encoding" not in headers


def _is_json(scope: Scope) -> bool:
    kind = dict(scope["headers"]).get(b"content-type", b"")
    return kind.partition(b";")[0].strip().lower() == b"application/json"


def _models(scope: Scope) -> Any:
    """vLLM's record of the models and adapters that it serves."""
    models = getattr(scope["app"].state, "openai_serving_models", None)
    if not hasattr(models, "lora_requests") or not hasattr(models, "is_base_model"):
        raise moved("keeps its record of served adapters elsewhere")
    return models


def _fields(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


async def _whole(receive: Receive) -> tuple[bytes, Receive]:
    """The body of a request, and a `receive` that gives its messages again."""
    messages: list[Message] = []
    while True:
        messages.append(await receive())
        if messages[-1]["type"] != "http.request" or not messages[-1].get("more_body"):
            break
    body = b"".join(one.get("body", b"") for one in messages)
    left = iter(messages)

    async def again() -> Message:
        found = next(left, None)
        return await receive() if found is None else found

    return body, again


async def _refuse(send: Send, status: int, message: str) -> None:
    """The form of vLLM's own errors."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
