"""Rendering of chat templates in a process of its own, with limits of time, memory and output."""

import atexit
import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from dive.errors import DiveError
from dive.prompting import template_process
from dive.prompting.template_process import LETTERS, MEGABYTES, SECONDS

_PATIENCE = 60.0  # seconds without an answer after which a process is ended
_MANY = 128  # templates that one process compiles before a new one replaces it


class TemplateFault(Exception):
    """A template refuses a conversation, or cannot be compiled; `kind` is Jinja's name for it."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class TemplateLimit(DiveError):
    """A chat template exceeds a limit of time, memory or output."""


class _Process:
    """One process, and the templates that it knows."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._known: set[str] = set()
        self._left = b""
        command = [sys.executable, "-c", _PROGRAM.format(path=sys.path), *_arguments()]
        try:
            # in a session of its own, so that Ctrl-C reaches the program and not this process
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise DiveError(f"cannot start {sys.executable} for chat templates: {error}") from error
        try:
            begun = self._line()
        except BaseException:
            self.end()
            raise
        if begun != b"ready":
            self.end()
            raise DiveError(f"{sys.executable}: the process for chat templates does not begin")

    @property
    def usable(self) -> bool:
        return self.owner == os.getpid() and len(self._known) < _MANY

    def ask(self, source: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to one request; None where the process ended instead."""
        name = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        request = {"id": name, "variables": variables}
        if name not in self._known:
            request["source"] = source
            self._known.add(name)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        line = self._line()
        return None if line is None else json.loads(line)

    def _line(self) -> bytes | None:
        """The next line of its answers; None at its end."""
        assert self._process.stdout is not None
        file = self._process.stdout.fileno()
        parts, until = [self._left], time.monotonic() + _PATIENCE
        while b"\n" not in parts[-1]:
            ready, _, _ = select.select([file], [], [], max(0.0, until - time.monotonic()))
            more = os.read(file, 1 << 20) if ready else b""
            if not more:
                return None
            parts.append(more)
        line, _, self._left = b"".join(parts).partition(b"\n")
        return line

    def end(self) -> int | None:
        """End the process; its exit status, or None where it was started before a fork."""
        status = None
        if self.owner == os.getpid():
            self._process.kill()
            status = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return status


# the program gets this path, so that it finds this package and Jinja as well
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from dive.prompting.template_process import main; main()"
)
_TIME_IS_UP = -getattr(signal, "SIGPROF", 0)
_lock = threading.Lock()
_process: _Process | None = None


def render(source: str, messages: list[dict[str, Any]], generation_prompt: bool, words: Any) -> str:
    """The text of a conversation by a Jinja template, as transformers renders it.

    `words`: further variables of the template (the tokenizer's special tokens).

    Raises:
        TemplateFault: the template cannot be compiled, or refuses the conversation.
        TemplateLimit: it uses more than `SECONDS` of CPU time, `MEGABYTES` or `LETTERS`.
    """
    variables = {
        **{name: _plain(word) for name, word in words.items()},
        "messages": messages,
        "add_generation_prompt": generation_prompt,
    }
    with _lock:
        answer = _ask(source, variables)
    limit = "; of a model it takes milliseconds, and a kilobyte or so"
    if answer is None:
        raise TemplateLimit(
            f"the chat template does not end: rendering one conversation takes more than "
            f"{SECONDS:g} s of computing, or ends the process that does so{limit}"
        )
    if "memory" in answer:
        raise TemplateLimit(
            f"the chat template fills the memory: rendering one conversation takes more than "
            f"{MEGABYTES} MB{limit}"
        )
    if "over" in answer:
        raise TemplateLimit(
            f"the chat template makes {answer['over']:,} letters of one conversation; the limit is "
            f"{LETTERS:,}"
        )
    if "error" in answer:
        raise TemplateFault(answer["error"], answer["kind"])
    return answer["text"]


def _ask(source: str, variables: dict[str, Any]) -> dict[str, Any] | None:
    """The answer of the running process, or of a new one; None where it ended."""
    global _process
    for last in (False, True):
        if _process is not None and not _process.usable:
            _end()
        if _process is None:
            _process = _Process()
        answer = _process.ask(source, variables)
        # something else may have ended it since the last request: try once more
        if answer is not None or _end() == _TIME_IS_UP or last:
            return answer
    return None


def _end() -> int | None:
    """End the process and return its exit status."""
    global _process
    ended, _process = _process, None
    return None if ended is None else ended.end()


def _plain(word: Any) -> Any:
    return [str(one) for one in word] if isinstance(word, (list, tuple)) else str(word)


def _arguments() -> list[str]:
    """["transformers"] where transformers offers templates more than this environment does."""
    from transformers.utils import chat_template_utils

    made = getattr(chat_template_utils, "_compile_jinja_template", None)
    if made is None:
        return []
    theirs, own = made("").environment, template_process.environment()
    tags = [
        {tag for extension in one.extensions.values() for tag in extension.tags}
        for one in (theirs, own)
    ]
    same = tags[0] <= tags[1] and all(
        set(getattr(theirs, kind)) <= set(getattr(own, kind))
        for kind in ("filters", "globals", "tests")
    )
    return [] if same else ["transformers"]


def _after_fork() -> None:
    """Give the child a lock of its own, as another thread may have held it.

    Its process starts when it is needed.
    """
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_end)
