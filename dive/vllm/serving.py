"""The line that serves exported adapters with vLLM, and what a client must send.

vLLM makes the prompt itself, from messages, by one chat template and one set of arguments for the
model's processor: adapters that were trained with different ones cannot share a server.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dive.adapter.adapter import SteeringAdapter
from dive.backbone.image_processor import budget_kwargs
from dive.backbone.load import source_of
from dive.backbone.without_weights import load_without_weights
from dive.errors import DiveError, checks
from dive.generation.generate_reports import MAX_NEW_TOKENS, prompt_settings
from dive.prompting import template_clock
from dive.prompting.prompter import DEFAULT_PROMPTS
from dive.prompting.templates import ChatTemplate, StoredTemplate, difference, user_turn
from dive.prompting.tokenizer import appended_by
from dive.vllm.exported import Exported, server_arguments
from dive.vllm.requests import flat

MIDDLEWARE = "dive.vllm.Provenance"
TEMPLATE_FILE = "chat_template.jinja"
# dive.generate is greedy and without penalties, whatever generation_config.json proposes
GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0}
# in the place of an image in the example of a request
IMAGE = "data:image/png;base64,..."


@dataclass(frozen=True)
class Prompting:
    """How the prompt of an adapter's training is made by vLLM.

    text: the user's text, after the image. sees: whether the backbone takes images. target: what
    the text asks for. max_image_tokens: the budget per image, None without one. image_settings: the
    arguments of the model's processor that follow from it, as vLLM's --mm-processor-kwargs takes
    them. template: the chat template of the server, None where it is the model's own. opened:
    whether the tokenizer adds the token that opens the prompt, where the template does not. ends:
    ids of the tokens that end a report. warning: what differs from the training's prompt.
    """

    text: str
    sees: bool
    target: str
    max_image_tokens: int | None
    image_settings: dict[str, Any]
    template: str | None
    opened: bool
    ends: list[int]
    warning: str | None


def prompting_of(adapter: SteeringAdapter, model: str, revision: str | None = None) -> Prompting:
    """Reads how an adapter was prompted from its metadata, and the processor of a backbone.

    model: the folder or hub id of the backbone, whose weights are not read.

    Raises:
        DiveError: no such backbone, no processor, or a chat template that is not usable.
    """
    stored = adapter.metadata
    source = source_of(model)
    settings = prompt_settings(stored, None, None, "auto")
    backbone = load_without_weights(source, revision)
    tokenizer = backbone.tokenizer
    processor = backbone.processor if tokenizer is not backbone.processor else None
    own = stored.get("template")
    template = ChatTemplate(
        processor,
        tokenizer,
        None
        if own is None
        else StoredTemplate(checks.text("the adapter's metadata.template", own)),
        stored.get("template_date"),
    )
    written = None
    if template.is_custom or template.plain or template.date is not None:
        written = template.source
    if template.date is not None:
        written = template_clock.at(template.source, template.date)
    text = settings["prompt"] or DEFAULT_PROMPTS[settings["target"]]
    rendered = template.render([user_turn(text, 0 if processor is None else 1)])
    bos = tokenizer.bos_token
    # as Prompter.encode_any_length
    opened = (processor is not None or template.plain) and not (bos and rendered.startswith(bos))
    warning = difference(stored, template.metadata())
    opened = (
        opened
        and tokenizer("a")["input_ids"] != (tokenizer("a", add_special_tokens=False)["input_ids"])
    )
    if opened and appended_by(tokenizer):
        warning = "; ".join([*filter(None, [warning]), "vLLM ends the prompt with an end token"])
    most = settings["max_image_tokens"]
    return Prompting(
        text,
        processor is not None,
        settings["target"],
        most,
        flat({} if processor is None else budget_kwargs(processor, most)),
        written,
        opened,
        [int(one) for one in stored.get("eos_token_ids") or ()],
        warning,
    )


def check_shared(prompting: Mapping[str, Prompting]) -> None:
    """Raises DiveError for adapters, by name, of which one server cannot make the prompts."""
    (first, one), *others = prompting.items()
    for name, other in others:
        if other.template != one.template:
            raise DiveError(
                f"{name} was trained with another chat template than {first}: a server has one, "
                "want a server for each"
            )
        if other.image_settings != one.image_settings:
            raise DiveError(
                f"{name} was trained with max_image_tokens {other.max_image_tokens}, and {first} "
                f"with {one.max_image_tokens}: a server has one budget per image, want a server "
                "for each"
            )


def serve_arguments(
    model: str,
    exported: Mapping[str, Exported],
    *,
    revision: str | None = None,
    image_settings: Mapping[str, Any] | None = None,
    chat_template: Path | None = None,
) -> list[str]:
    """The words of the command that serves exported adapters, by their names.

    model: the folder or hub id that vLLM loads. image_settings: see `Prompting`. chat_template: the
    file of the server's, None for the model's own.

    Raises:
        DiveError: the adapters cannot be served together.
    """
    given = server_arguments([*exported.values()])
    words = ["vllm", "serve", model]
    if revision is not None:
        words += ["--revision", revision]
    words += ["--hf-overrides", json.dumps(given["hf_overrides"])]
    words += ["--enable-lora", "--lora-target-modules", *given["lora_target_modules"]]
    for name in ("max_lora_rank", "max_loras"):
        words += ["--" + name.replace("_", "-"), str(given[name])]
    words += ["--lora-modules", *(f"{name}={one.folder}" for name, one in exported.items())]
    if chat_template is not None:
        words += ["--chat-template", str(chat_template)]
    if image_settings:
        words += ["--mm-processor-kwargs", json.dumps(image_settings)]
    return [
        *words, "--override-generation-config", json.dumps(GREEDY), "--middleware", MIDDLEWARE,
    ]  # fmt: skip


def chat_request(name: str, prompting: Prompting) -> dict[str, Any]:
    """The body of POST /v1/chat/completions by which an adapter is prompted as it was trained.

    `IMAGE` stands for the image, where the backbone takes any.
    """
    text: dict[str, Any] = {"type": "text", "text": prompting.text}
    image = {"type": "image_url", "image_url": {"url": IMAGE}}
    body: dict[str, Any] = {
        "model": name,
        "messages": [{"role": "user", "content": [image, text] if prompting.sees else [text]}],
        "temperature": 0,
        "max_tokens": MAX_NEW_TOKENS,
    }
    if prompting.opened:
        body["add_special_tokens"] = True  # a bos, say: vLLM's chats have none by default
    return body | ({"stop_token_ids": prompting.ends} if prompting.ends else {})
