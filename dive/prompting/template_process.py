"""The program of the process in which chat templates are rendered; `template_renderer` starts it.

It imports Jinja alone, so it starts in a tenth of a second.

A template is a program of whoever made the model or the adapter, and Jinja's sandbox bounds what it
may access, but neither its time nor its memory: `{{ 10**10**8 }}` is one operation that nothing in
the same process can stop. Here the system does: it ends the process when a rendering has used its
CPU time, and limits its memory.

Each request and each answer is one line of JSON.
"""

import datetime
import json
import os
import random
import signal
import sys
from contextlib import suppress
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 0.5  # CPU time of one rendering, compiling included; usual is 0.001
MEGABYTES = 512  # in addition to what the process has when it begins
LETTERS = 600_000  # of the rendered text: more than a context of 128k tokens


class _Dict:
    """`dict` for templates, without access to Python's own."""

    def __call__(self, *given: Any, **named: Any) -> dict[Any, Any]:
        return dict(*given, **named)

    def fromkeys(self, *given: Any) -> dict[Any, Any]:
        return dict.fromkeys(*given)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __init__(*given: Any, **named: Any) -> None:  # `namespace(self=...)` is allowed
        for name in (attributes := dict(*given[1:], **named)):
            _Namespace._check(name)
        jinja2.utils.Namespace.__init__(given[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace holds no {name!r}")


class Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks the assistant's text for training by transformers."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def environment() -> ImmutableSandboxedEnvironment:
    """The environment in which transformers (5.17 to 5.24) renders chat templates."""

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):  # type: ignore[no-untyped-def]
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)  # fmt: skip

    def strftime_now(format: str) -> str:
        return datetime.datetime.now().strftime(format)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    made.globals["dict"] = _Dict()
    made.globals["namespace"] = _Namespace
    return made


class _Own:
    """A renderer that works as that of transformers, without importing it."""

    def __init__(self) -> None:
        self._environment = environment()
        self._compiled: dict[str, jinja2.Template] = {}

    def __call__(self, source: str, variables: dict[str, Any]) -> str:
        if source not in self._compiled:
            self._compiled[source] = self._environment.from_string(source)
        return self._compiled[source].render(tools=None, documents=None, **variables)


def _by_transformers(source: str, variables: dict[str, Any]) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = variables.pop("messages")
    found: Any = render_jinja_template(conversations=[messages], chat_template=source, **variables)
    return found[0][0]


def _limit_memory() -> None:
    """Limit further memory to `MEGABYTES`, where the system supports it."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            held = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = held + (MEGABYTES << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _clock(seconds: float) -> None:
    # unhandled, the signal ends the process even within one operation of Jinja or C
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    """Answer requests until there are no more.

    A request: {"id", "source" where the id is new, "variables" (messages and the like)}. An answer:
    {"text"}, {"error", "kind"} of the template, {"over"} characters, or {"memory"}.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    if "transformers" in sys.argv[1:]:
        import transformers.utils.chat_template_utils  # noqa: F401 (not on the template's time)

        render: Any = _by_transformers
    else:
        render = _Own()
    sources: dict[str, str] = {}
    _limit_memory()
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        if "source" in request:
            sources[request["id"]] = request["source"]
        random.seed(0)  # a template makes the same random choices every time
        _clock(SECONDS)
        try:
            text = render(sources[request["id"]], request["variables"])
            answer = {"text": text} if len(text) <= LETTERS else {"over": len(text)}
            answer_line = json.dumps(answer)
        except MemoryError:
            answer_line = json.dumps({"memory": MEGABYTES})
        except Exception as error:  # a template may raise any
            # some messages contain the value that they are about
            words = " ".join(str(error)[:1000].split())
            answer_line = json.dumps({"error": words, "kind": type(error).__name__})
        _clock(0.0)
        answers.write(answer_line + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
