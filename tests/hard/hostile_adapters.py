"""Adapters and chat templates, and a backbone's weights, made to hang, to fill or to run something.

Every maker makes something that must be refused.
"""

import base64
import json
import os
import pickle
import random
import socket
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.hard.hostile_base import Base, Maker

_WRONG: tuple[Any, ...] = (-1, True, 1.5, "x", [], {}, [[]], 10**12, 2**80, "A" * 100_000, -(10**9))
_TEXTS: tuple[Any, ...] = (7, True, 1.5, [], {}, ["a"], [None])
# fields, and values that are right in none of them
_FIELDS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("steering", (7, "x", [], None)),
    ("steering.rank", (*_WRONG, 129, None)),
    ("steering.layers", (7, "x", [], {}, [10**12], [True], [-1], [0, 0], list(range(10**5)))),
    ("steering.activation", (*_WRONG, "__import__")),
    ("steering.positions", _WRONG),
    ("steering.norm_preserving", (1, "x", [], None)),
    ("steering.eps", (-1, 0, True, "x", [], 10**400)),
    ("format", (*_WRONG, 2, True, 1.0)),
    ("metadata", (7, "x", [1])),
    ("metadata.backbone", _TEXTS),
    ("metadata.backbone.hidden_size", (*_WRONG, 10**9, 33, None)),
    ("metadata.backbone.num_layers", (*_WRONG, 10**9, 4, None)),
    ("metadata.backbone.architecture", _TEXTS),
    ("metadata.backbone.name", _TEXTS),
    ("metadata.backbone.vocab_size", ("x", [], {}, 1.5, True, -1)),
    ("metadata.prompt", (*_TEXTS, "", "  ")),
    ("metadata.target", (*_TEXTS, "x", "report")),
    ("metadata.max_image_tokens", (-1, 0, True, 1.5, "x", [], 10**12)),
    ("metadata.template", (*_TEXTS, "/etc/hostname", "/dev/zero", "", "plain text")),
    ("metadata.template_date", (*_TEXTS, "today", "2024-13-01", "9999-99-99")),
    ("metadata.template_hash", _TEXTS),
    ("metadata.weights", _TEXTS),
    ("metadata.weights.each", (0, -1, True, 10**9, "x")),
    ("metadata.weights.samples", _TEXTS),
    ("metadata.weights.tuners", (7, "x", {}, [7])),
    ("metadata.weights.made_up", (7, "x", {}, ["x"])),
    ("metadata.distillation", _TEXTS),
    ("metadata.distillation.sources", (7, "x", {}, [7], [[]])),
    ("metadata.distillation.config", _TEXTS),
)


def _settings(adapter: Path) -> tuple[Path, dict[str, Any]]:
    path = adapter / "adapter_config.json"
    return path, json.loads(path.read_text())


def field(rng: random.Random, place: Path, base: Base) -> list[str]:
    adapter = base.copied_adapter(place)
    path, settings = _settings(adapter)
    name, values = rng.choice(_FIELDS)
    *outer, last = name.split(".")
    table: Any = settings
    for part in outer:
        table = table[part]
    table[last] = rng.choice(values)
    path.write_text(json.dumps(settings))
    return base.with_adapter(place, adapter)


def text(rng: random.Random, place: Path, base: Base) -> list[str]:
    adapter = base.copied_adapter(place)
    path, settings = _settings(adapter)
    whole, digits = json.dumps(settings), "9" * rng.choice((20, 4000, 100_000))
    deep = rng.choice((100, 5000, 200_000))
    changed = rng.choice(
        (
            lambda: whole.replace('"hidden_size": 32', f'"hidden_size": {digits}'),
            lambda: whole.replace('"num_layers": 3', f'"num_layers": {digits}'),
            lambda: whole.replace('"eps": 1e-06', '"eps": NaN'),
            lambda: whole.replace('"eps": 1e-06', '"eps": 1e999'),
            lambda: whole.replace('"rank": 2', '"rank": 2, "rank": 3'),
            lambda: whole.replace('"prompt"', f'"more": {"[" * deep}{"]" * deep}, "prompt"'),
            lambda: '{"a":' * deep,
            lambda: whole[: rng.randrange(len(whole))],
            lambda: whole + " " * (17 << 20),
            lambda: "[" + "{}," * (4 << 20) + "{}]",
            lambda: whole + "\0",
            lambda: "",
        )
    )()
    path.write_text(changed)
    return base.with_adapter(place, adapter)


def samples(rng: random.Random, place: Path, base: Base) -> list[str]:
    """Base64 of hundreds of megabytes among the samples of the weights."""
    adapter = base.copied_adapter(place)
    path, settings = _settings(adapter)
    settings["metadata"]["weights"]["samples"] = base64.b64encode(
        bytes(rng.choice((20, 200)) << 20)
    ).decode()
    path.write_text(json.dumps(settings))
    return base.with_adapter(place, adapter)


def header(rng: random.Random, place: Path, base: Base) -> list[str]:
    """A safetensors header that lies, or that is no header."""
    adapter = base.copied_adapter(place)
    path = adapter / "adapter.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = rng.choice([key for key in table if key != "__metadata__"])
    entry = table[name]

    def written(header: bytes, said: int | None = None) -> None:
        size = len(header) if said is None else said
        path.write_bytes(size.to_bytes(8, "little") + header + body)

    kind = rng.randrange(9)
    if kind == 0:
        written(data[8 : 8 + length], rng.choice((0, 1, len(data), 10**8, 2**40, 2**64 - 1)))
    elif kind == 1:
        written(b"{" * 10**5)
    elif kind == 2:
        written(json.dumps(table).encode() + b" " * (rng.choice((5, 101)) << 20))
    elif kind == 3:
        path.write_bytes(data[: rng.randrange(8)])
    else:
        if kind == 4:
            entry["shape"] = [10**9, 10**9]
        elif kind == 5:
            entry["dtype"] = rng.choice(("F64", "BF16", "F99", 7, None, "U8"))
        elif kind == 6:
            entry["data_offsets"] = rng.choice(([-1, 4], [0, 2**62], [4, 0], "x", [], [0, 0]))
        elif kind == 7:
            table["x" * rng.choice((1, 10**5))] = table.pop(name)
        else:
            table |= {f"more.{i}": entry for i in range(rng.choice((1, 10_000)))}
        written(json.dumps(table).encode())
    return base.with_adapter(place, adapter)


def tensors(rng: random.Random, place: Path, base: Base) -> list[str]:
    adapter = base.copied_adapter(place)
    path = adapter / "adapter.safetensors"
    held = load_file(path)
    name = rng.choice(sorted(held))
    if rng.random() < 0.5:
        del held[name]
    else:
        held[name] = rng.choice((held[name].double(), held[name].flatten()[:0]))
    path.unlink()
    save_file(held, path)
    return base.with_adapter(place, adapter)


def huge(rng: random.Random, place: Path, base: Base) -> list[str]:
    """Weights, or settings, of terabytes that take no room on the disk."""
    adapter = base.copied_adapter(place)
    name = rng.choice(("adapter.safetensors", "adapter_config.json"))
    os.truncate(adapter / name, rng.choice((1 << 33, 1 << 40)))
    return base.with_adapter(place, adapter)


def no_file(rng: random.Random, place: Path, base: Base) -> list[str]:
    """A pipe, a socket, a folder or a link in the place of a file."""
    adapter = base.copied_adapter(place)
    path = adapter / rng.choice(("adapter.safetensors", "adapter_config.json"))
    path.unlink()
    kind = rng.randrange(5)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        os.mkfifo(place / "pipe")
        path.symlink_to(place / "pipe")
    elif kind == 2:
        path.symlink_to(path)
    elif kind == 3:
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as made:
            here = os.open(path.parent, os.O_RDONLY)
            made.bind(f"/proc/self/fd/{here}/{path.name}")  # a socket's name is short
            os.close(here)
    return base.with_adapter(place, adapter)


_LOOPS = (
    "{{% for i in range({n}) %}}{{% for j in range({n}) %}}{{% for k in range({n}) %}}"
    "{{% endfor %}}{{% endfor %}}{{% endfor %}}",
    "{{% for i in range(10**9) %}}{{% endfor %}}",
    "{{{{ 10**(10**{k}) }}}}",
    "{{{{ 7 * 10**(10**{k}) }}}}",
    "{{{{ 'a' * 10**1{k} }}}}",
    "{{{{ ([0] * 10**1{k}) | length }}}}",
    "{{% set n = namespace(x='ab') %}}{{% for i in range({n}) %}}{{% set n.x = n.x ~ n.x %}}"
    "{{% endfor %}}",
    "{{% set n = namespace(x=[1], y=[1]) %}}{{% for i in range(60) %}}{{% set n.x = [n.x, n.x] %}}"
    "{{% set n.y = [n.y, n.y] %}}{{% endfor %}}{{{{ n.x == n.y }}}}",
    "{{% set n = namespace(x=[1]) %}}{{% for i in range(60) %}}{{% set n.x = [n.x, n.x] %}}"
    "{{% endfor %}}{{{{ n.x }}}}",
    "{{% macro f(n) %}}{{{{ f(n + 1) }}}}{{{{ f(n + 2) }}}}{{% endmacro %}}{{{{ f(0) }}}}",
    "{{% for m in [1] recursive %}}{{{{ loop([1, 1]) }}}}{{% endfor %}}",
    "{{{{ lipsum(n=10**{k}) }}}}",
    "{{{{ '%{n}000000d' % 1 }}}}",
    "{{{{ '{{:>{n}000000}}'.format(1) }}}}",
    "{{{{ 'x'.center({n}0000000) }}}}",
    "{{{{ 'x' | indent({n}0000000, true) }}}}",
    "{{{{ messages | tojson(indent={n}0000000) }}}}",
    "{{{{ ('a' * 100000).replace('a', 'b' * {n}00) }}}}",
    "{{{{ 'x' * {n}000 }}}}",
    "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
    "{{{{ messages.__init__.__globals__ }}}}",
    "{{{{ self.__init__.__globals__.__builtins__.__import__('os').system('true') }}}}",
    "{{% include '/etc/hostname' %}}",
    "{{% import 'os' as os %}}",
    "{{{{ {parens} }}}}",
    "{{% if",
)


def _template(rng: random.Random) -> str:
    from tiny_templates import LLAVA

    parens = rng.choice(("(" * 20_000, "-" * 50_000 + "1", "[" * 9_000 + "]" * 9_000))
    bomb = rng.choice(_LOOPS).format(n=rng.randrange(2000, 9999), k=rng.randrange(7, 10),
                                     parens=parens)  # fmt: skip
    late = "{% if messages | length > 1 %}" + bomb + "{% endif %}"
    return rng.choice((bomb + LLAVA, LLAVA + bomb, late + LLAVA))


def stored_template(rng: random.Random, place: Path, base: Base) -> list[str]:
    adapter = base.copied_adapter(place)
    path, settings = _settings(adapter)
    settings["metadata"]["template"] = _template(rng)
    path.write_text(json.dumps(settings))
    return base.with_adapter(place, adapter)


def own_template(rng: random.Random, place: Path, base: Base) -> list[str]:
    backbone = base.copied_backbone(place)
    (backbone / "chat_template.jinja").write_text(_template(rng))
    return base.generate(place, base.image, backbone=backbone)


class _Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def pickled(rng: random.Random, place: Path, base: Base) -> list[str]:
    """Weights that are a pickle which runs something."""
    backbone = base.copied_backbone(place)
    (backbone / "model.safetensors").unlink()
    path = backbone / "pytorch_model.bin"
    if rng.random() < 0.5:
        path.write_bytes(pickle.dumps(_Runs(place / "ran")))
    else:
        import torch

        torch.save({"w": torch.zeros(1), "x": _Runs(place / "ran")}, path)
    return base.generate(place, base.image, backbone=backbone)


ADAPTERS: tuple[Maker, ...] = (field, text, samples, header, tensors, huge, no_file)
TEMPLATES: tuple[Maker, ...] = (stored_template, own_template)
BACKBONES: tuple[Maker, ...] = (pickled,)
