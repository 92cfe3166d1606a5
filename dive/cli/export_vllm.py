"""`dive export-vllm`: adapters in the form that vLLM loads, and the line that serves them."""

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dive.cli.options import JsonOption, as_path, quiet_libraries
from dive.errors import DiveError
from dive.errors.visible import visible, visible_json

if TYPE_CHECKING:
    from dive.adapter.adapter import SteeringAdapter
    from dive.vllm.exported import Exported
    from dive.vllm.serving import Prompting

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def export_vllm(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTERS...", help="Folders of dive distill, or hub ids."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            parser=as_path,
            metavar="FOLDER",
            help="What vLLM loads; for several adapters a folder in it for each, by name.",
        ),
    ],
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="The model that is served: a folder or hub id. Default: the hub id under which "
            "the adapter knows it.",
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            help="By which requests ask for the adapter (model=); once for each. Default: the "
            "name of its folder.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write adapters for vLLM, and print the line that serves them and what a client sends.

    Needs neither vLLM nor a GPU; of the backbone, its settings and processor, no weights.
    """
    names = _names(adapters, name)
    quiet_libraries()
    from dive.adapter.adapter import as_adapter
    from dive.vllm.serving import chat_request

    given = {key: as_adapter(one) for key, one in zip(names, adapters, strict=True)}
    model, revision = _model_of(given, backbone)
    folder = out.resolve()
    folders = {key: folder / key if len(given) > 1 else folder for key in given}
    prompting, words = _write(given, folders, folder, model, revision)
    requests = {key: chat_request(key, one) for key, one in prompting.items()}
    if as_json:
        print(visible_json(_facts(words, given, folders, prompting, requests)))
        return
    print(visible(_line(words)))
    for key, one in prompting.items():
        print(visible(_for_clients(key, given[key], one, requests[key])))


def _names(adapters: list[str], name: list[str] | None) -> list[str]:
    if name and len(name) != len(adapters):
        raise DiveError(
            f"--name is given {len(name)} times for {len(adapters)} adapters, want one for each"
        )
    names = name or [Path(one).resolve().name for one in adapters]
    for index, one in enumerate(names):
        if not _NAME.fullmatch(one) or one == "none":
            raise DiveError(
                f"the name {one!r} is not usable in a request, want letters, digits, '.', '_' and "
                "'-', and not none (--name)"
            )
        if one in names[:index]:
            raise DiveError(f"two adapters have the name {one!r}, want different ones (--name)")
    return names


def _model_of(given: "dict[str, SteeringAdapter]", backbone: str | None) -> tuple[str, str | None]:
    """The folder or hub id of the model that is served, and its revision on the hub."""
    if backbone is not None:
        where = Path(backbone)
        return (str(where.resolve()) if where.is_dir() else backbone), None
    found: dict[str, tuple[str, str]] = {}
    for key, adapter in given.items():
        facts = adapter.metadata["backbone"]
        if not facts.get("revision"):
            raise DiveError(
                f"the adapter {key} does not know where its backbone is, want --backbone: its "
                "folder or hub id"
            )
        found[key] = str(facts["name"]), str(facts["revision"])
    (first, one), *others = found.items()
    for key, other in others:
        if other != one:
            raise DiveError(
                f"the adapter {key} belongs to {other[0]}, and {first} to {one[0]} (revision "
                f"{one[1]}), want adapters of one backbone, or --backbone"
            )
    return one


def _write(
    given: "dict[str, SteeringAdapter]",
    folders: dict[str, Path],
    folder: Path,
    model: str,
    revision: str | None,
) -> "tuple[dict[str, Prompting], list[str]]":
    """Writes the folders, and the chat template where the server needs one. Returns how each
    adapter is prompted, and the words of the line that serves them."""
    from dive.vllm.exported import export
    from dive.vllm.serving import TEMPLATE_FILE, check_shared, prompting_of, serve_arguments

    prompting = {key: prompting_of(one, model, revision) for key, one in given.items()}
    check_shared(prompting)
    serve_arguments(model, _planned(given, folders))  # what cannot be served together
    exported = {
        key: export(one, folders[key], backbone=model, revision=revision)
        for key, one in given.items()
    }
    first = next(iter(prompting.values()))
    template = None if first.template is None else folder / TEMPLATE_FILE
    if template is not None:
        _write_template(template, first.template or "")
    words = serve_arguments(
        model,
        exported,
        revision=revision,
        image_settings=first.image_settings,
        chat_template=template,
    )
    return prompting, words


def _write_template(file: Path, text: str) -> None:
    from dive.files.atomic import write_text

    if file.exists() and file.read_bytes() != text.encode("utf-8"):
        raise DiveError(
            f"{file} is the chat template of other adapters, want a new folder: their servers "
            "would prompt otherwise from their next start on"
        )
    write_text(file, text)


def _planned(
    given: "dict[str, SteeringAdapter]", folders: dict[str, Path]
) -> "dict[str, Exported]":
    """What will be exported, before anything is written."""
    from dive.vllm.exported import Exported
    from dive.vllm.settings import ServerSteering

    planned = {}
    for key, one in given.items():
        try:
            steering = ServerSteering.of_adapter(one.config)
        except DiveError as error:
            raise DiveError(f"{key}: {error}") from error
        architecture = str(one.metadata["backbone"].get("architecture"))
        rank = max(one.config.rank, 1)
        planned[key] = Exported(folders[key], "", rank, architecture, steering)
    return planned


def _line(words: list[str]) -> str:
    """A command of several lines, to be copied into a shell."""
    lines = [" ".join(map(shlex.quote, words[:3]))]
    for word in words[3:]:
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += " " + shlex.quote(word)
    return " \\\n  ".join(lines)


def _for_clients(
    key: str, adapter: "SteeringAdapter", prompting: "Prompting", request: dict[str, Any]
) -> str:
    """What a client must send to get the prompt of an adapter's training."""
    budget = prompting.max_image_tokens
    lines = [
        "",
        f"{key}: sha256 {adapter.weights_sha256()[:12]}, rank {adapter.config.rank}, writes "
        f"{prompting.target}. POST /v1/chat/completions with",
        json.dumps(request, indent=2, ensure_ascii=False),
        ("  images come before the text; " if prompting.sees else "  ")
        + 'a study with an indication: "Indication: ...", a line break, then the text',
        "  temperature 0 as in dive.generate (the server's default with this line); "
        f"image tokens: {'no budget' if budget is None else f'at most {budget} per image'}"
        + (", by --mm-processor-kwargs of the server" if prompting.image_settings else ""),
    ]
    if prompting.template is not None:
        lines.append("  the prompt is made by the server's --chat-template, as in training")
    if prompting.warning is not None:
        lines.append(
            "  CAUTION: the prompt is not that of the training, so that the adapter may do nothing "
            f"or harm; what differs: {prompting.warning}"
        )
    return "\n".join(lines)


def _facts(
    words: list[str],
    given: "dict[str, SteeringAdapter]",
    folders: dict[str, Path],
    prompting: "dict[str, Prompting]",
    requests: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    return {
        "command": shlex.join(words),
        "arguments": words,
        "adapters": [
            {
                "name": key,
                "folder": str(folders[key]),
                "sha256": one.weights_sha256(),
                "rank": one.config.rank,
                "target": prompting[key].target,
                "max_image_tokens": prompting[key].max_image_tokens,
                "request": requests[key],
                "warning": prompting[key].warning,
            }
            for key, one in given.items()
        ],
    }
