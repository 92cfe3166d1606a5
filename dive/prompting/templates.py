"""A backbone's chat template: the form of content that it takes, and the end of an assistant's
turn.

Nothing here is a list of model names: the template is rendered with known texts, and the result is
examined.
"""

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from dive.errors import DiveError, checks
from dive.errors.private import public_reason
from dive.files.input import read_file
from dive.prompting import template_clock, template_renderer

log = logging.getLogger(__name__)

MAX_TEMPLATE_BYTES = 4 << 20  # of a file; the longest of a model today has about 20 kB

# Texts that no template contains, to be found in what it renders.
_QUESTION = "Qqzx question qxzQ"
_ANSWER = "Aavw answer wvaA"

# For models without a chat template (base models) where the user passes none. The tokenizer's end
# token closes each report, so demonstrations show where a report ends.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' }}"
    "{% for part in message['content'] %}"
    "{{ ('IMAGE_PLACEHOLDER' if part['type'] == 'image' else part['text']) + '\n' }}"
    "{% endfor %}"
    "{% else %}{{ 'Assistant: ' + message['content'][0]['text'] + eos_token + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


class StoredTemplate(str):
    """A template's text that came with an adapter: never the name of a file to read."""


def names_file(template: Any) -> bool:
    """Return whether a template is given as the name of a file, and not as its text."""
    stored = template is None or isinstance(template, StoredTemplate)
    return not (stored or "{%" in str(template) or "{{" in str(template))


def user_turn(text: str, images: int) -> dict[str, Any]:
    """A user's message in the form that processors document: the images first, then the text."""
    parts: list[dict[str, str]] = [{"type": "image"}] * images
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def assistant_turn(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


class ChatTemplate:
    """One backbone's template, which renders messages (lists of parts).

    Args:
        processor: the backbone's processor, or None for a text model.
        tokenizer: its tokenizer.
        template: Jinja text, or a file with it (a `StoredTemplate` is text); None takes the
            processor's own, then the tokenizer's, then `PLAIN_TEMPLATE`.
        date: the date for the template, as "2024-07-26" or a `datetime.date`; None is today.
            Without effect on a template that does not read it.

    Attributes:
        source: the Jinja text. is_custom: it came from the user. plain: it is `PLAIN_TEMPLATE`.
        date: the date for the template, at midnight; None where it does not read it.
        conversation: a short conversation as it renders it.
        hash: first 16 hexadecimal digits of a SHA-256 of `source` and `conversation`; text_hash: of
            `source` alone.
        placeholder: the text of one image in rendered text; None for a text model.
        lead: white space that the template puts between the generation prompt and the answer.
    """

    def __init__(
        self,
        processor: Any,
        tokenizer: Any,
        template: str | Path | None = None,
        date: Any = None,
    ) -> None:
        self._tokenizer = tokenizer
        sees = processor is not None and getattr(processor, "image_processor", None) is not None
        self._renderer = processor if sees else tokenizer
        placeholders = _placeholders(processor, tokenizer) if sees else []
        self.is_custom = template is not None
        self.plain = False
        if template is not None:
            self.source = _read_template(template)
        else:
            own = _own_template(processor) if sees else None
            self.source = own or _own_template(tokenizer) or ""
            if not self.source:
                self.plain = True
                placeholder = placeholders[0] if placeholders else ""
                self.source = PLAIN_TEMPLATE.replace("IMAGE_PLACEHOLDER", placeholder)
                self._say_plain(sees)
        if self.plain and not tokenizer.eos_token:
            raise DiveError(
                "the model has neither a chat template nor an end-of-sequence token; "
                "give a template file"
            )
        date = None if date is None else template_clock.as_date(date)
        clock = template_clock.reads_clock(self.source)
        self.date: str | None = (date or template_clock.today()) if clock else None
        self._dated = (
            self.source if self.date is None else template_clock.at(self.source, self.date)
        )
        self._plain_text_roles: frozenset[str] = frozenset()
        self.placeholder: str | None = None
        self._find_style(placeholders)
        self.lead = self._find_lead()
        self.conversation = self._converse()
        self.text_hash = _hash(self.source)
        self.hash = _hash(f"{self.source}\0{self.conversation}")

    def render(self, messages: Sequence[dict[str, Any]], generation_prompt: bool = True) -> str:
        """Render messages to the text for the processor or tokenizer.

        Raises:
            DiveError: the template refuses the conversation, or does not show each image once.
        """
        images = sum(part["type"] == "image" for message in messages for part in message["content"])
        try:
            text = self._render(messages, generation_prompt)
        except DiveError:
            raise
        except Exception as error:  # a tokenizer's own code may raise anything
            texts = [part.get("text") for message in messages for part in message["content"]]
            raise DiveError(
                f"the chat template refuses the conversation: {public_reason(error, texts)}"
            ) from error
        if images and self.placeholder is None:
            raise DiveError(f"the backbone is a text model; it takes no image, got {images}")
        if self.placeholder is not None and text.count(self.placeholder) != images:
            raise DiveError(
                f"the prompt has {images} images, and the chat template shows "
                f"{text.count(self.placeholder)} of them ({self.placeholder!r} in the text counts)"
            )
        return text

    def close(self, generation_ids: Sequence[int]) -> int:
        """Id of the token that closes the assistant's turn.

        The token that the template writes after an assistant's answer, if it is a special token or
        one of `generation_ids` (the model's `generation_config.eos_token_id`); otherwise the
        first of `generation_ids`; otherwise the tokenizer's end token.

        Raises:
            DiveError: there is none of the three.
        """
        tokenizer = self._tokenizer
        special = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        special |= {tokenizer.convert_ids_to_tokens(index): index for index in generation_ids}
        text = self._render([user_turn(_QUESTION, self._images), assistant_turn(_ANSWER)], False)
        after = text[text.index(_ANSWER) + len(_ANSWER) :].lstrip()
        follows = [token for token in special if token and after.startswith(token)]
        if follows:
            return special[max(follows, key=len)]
        if generation_ids:
            return generation_ids[0]
        if tokenizer.eos_token_id is not None:
            return tokenizer.eos_token_id
        raise DiveError(
            "no token ends a report: the chat template writes none behind an answer, and neither "
            "generation_config.json nor the tokenizer has eos_token_id"
        )

    def anchor(self) -> str:
        """A short conversation up to the generation prompt, in whose context answers are cut."""
        return self._render([user_turn(_QUESTION, self._images)], True)

    @property
    def _images(self) -> int:
        return 0 if self.placeholder is None else 1

    def _render(self, messages: Sequence[dict[str, Any]], generation_prompt: bool) -> str:
        styled = [self._styled(message) for message in messages]
        words = self._tokenizer.special_tokens_map
        text = template_renderer.render(self._dated, styled, generation_prompt, words)
        if not _renders_itself(self._renderer):
            return text
        # a tokenizer's own code; the template itself was rendered within its limits before
        with template_clock.drawing(self.source):
            return self._renderer.apply_chat_template(
                styled,
                chat_template=self._dated,
                add_generation_prompt=generation_prompt,
                tokenize=False,
            )

    def _styled(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] not in self._plain_text_roles:
            return {"role": message["role"], "content": [dict(p) for p in message["content"]]}
        texts = [
            part["text"] if part["type"] == "text" else f"{self.placeholder}\n"
            for part in message["content"]
        ]
        return {"role": message["role"], "content": "".join(texts)}

    def _say_plain(self, sees: bool) -> None:
        """Report that the plain template is used.

        A vision-language model without a template has mostly lost a file. The PaliGemma line, like
        text models before instruction tuning, never had one.
        """
        name = type(self._renderer).__name__
        if not sees or name.startswith("PaliGemma"):
            log.info("the model has no chat template; using the plain one")
            return
        warnings.warn(
            f"{name} has no chat template (chat_template.jinja), and a plain one is used: a model "
            "that was trained on conversations writes other reports with it",
            stacklevel=5,
        )

    def _find_style(self, placeholders: list[str]) -> None:
        """Find which roles take content as parts and which as plain text, and the placeholder."""
        problem = ""
        candidates: Sequence[str | None] = placeholders or [None]
        for roles in ((), ("assistant",), ("user", "assistant")):
            self._plain_text_roles = frozenset(roles)
            # with plain text content dive writes the placeholder, so any of them will do
            for placeholder in candidates:
                self.placeholder = placeholder
                messages = [user_turn(_QUESTION, self._images), assistant_turn(_ANSWER)]
                try:
                    text = self._render(messages, False)
                except DiveError:
                    raise
                except Exception as error:
                    kind = getattr(error, "kind", type(error).__name__)
                    problem = f"{kind}: {error}"
                    continue
                texts = text.count(_QUESTION) == 1 and text.count(_ANSWER) == 1
                stringified = "'type':" in text or '"type":' in text
                if (
                    texts
                    and not stringified
                    and (placeholder is None or text.count(placeholder) == 1)
                ):
                    return
                problem = problem or f"it renders {checks.shown(text)}"
        raise DiveError(
            "the chat template renders no conversation of an image, a question and an answer: "
            f"{problem}; give a template file"
        )

    def _find_lead(self) -> str:
        opened = self.anchor()
        whole = self._render([user_turn(_QUESTION, self._images), assistant_turn(_ANSWER)], False)
        if not whole.startswith(opened):
            return ""
        between = whole[len(opened) : whole.index(_ANSWER)]
        # anything but white space opens the answer itself (a reasoning block, say)
        return between if not between.strip() else ""

    def _converse(self) -> str:
        """A short conversation as it is rendered, of one turn where the template takes no more."""
        question, answer = user_turn(_QUESTION, self._images), assistant_turn(_ANSWER)
        try:
            text = self._render([question, answer, question], True)
        except DiveError:
            raise
        except Exception:  # a tokenizer's own code may raise anything
            return self.anchor()
        if text != self._render([question, answer, question], True):
            raise DiveError(
                "the chat template renders the same conversation differently each time; give a "
                "template file"
            )
        return text

    def metadata(self) -> dict[str, Any]:
        """The values by which `difference` distinguishes templates; JSON values only."""
        return {
            "template_hash": self.hash,
            "template_text_hash": self.text_hash,
            "template_date": self.date,
            "template_conversation": self.conversation,
        }


def difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Describe how the chat template of `earlier` differs from that of `now`.

    None where it does not, or where `earlier` has no record of it. Both are as
    `ChatTemplate.metadata` returns them. Before conversations were hashed, `template_hash` was that
    of the template's text alone.
    """
    known = earlier.get("template_hash")
    details = ("template_text_hash", "template_conversation")
    detailed = any(name in earlier for name in details)
    unknown = [name for name in details if earlier.get(name) is None]
    if known is None or known == now["template_hash" if detailed else "template_text_hash"]:
        return None
    if not detailed:
        return f"its text (hash {known!s:.40}, now {now['template_text_hash']})"
    found = []
    for name, what in (("template_text_hash", "its text, hash"), ("template_date", "its date,")):
        if name not in unknown and earlier.get(name) != now[name]:
            found.append(f"{what} {earlier.get(name)!s:.40} (now {now[name]})")
    before, after = str(earlier.get("template_conversation")), now["template_conversation"]
    if before != after and "template_conversation" not in unknown:
        pairs = enumerate(zip(before, after, strict=False))
        apart = next((index for index, (a, b) in pairs if a != b), min(len(before), len(after)))
        start = max(apart - 20, 0)
        shown = [repr(text[start : start + 60]) for text in (before, after)]
        found.append(f"what it renders: {shown[0]} (now {shown[1]})")
    return "; ".join(found) or "unknown"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _own_template(holder: Any) -> str | None:
    template = getattr(holder, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None and not isinstance(template, str):
        raise DiveError(
            f"{type(holder).__name__}: chat_template is {template!r}, want a Jinja template's text"
        )
    return template


def _renders_itself(renderer: Any) -> bool:
    """Return whether a tokenizer or processor renders by code of its own."""
    own = getattr(type(renderer), "apply_chat_template", None)
    general = (ProcessorMixin.apply_chat_template, PreTrainedTokenizerBase.apply_chat_template)
    return own not in general or "apply_chat_template" in vars(renderer)


def _read_template(template: str | Path) -> str:
    if isinstance(template, StoredTemplate):
        if "{%" not in template and "{{" not in template:
            raise DiveError(
                f"the adapter's stored chat template is {checks.shown(template)}, want the text "
                "of a Jinja template"
            )
        return str(template)
    if not names_file(template):
        return str(template)
    try:
        text = read_file(template, MAX_TEMPLATE_BYTES, pipe=True).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DiveError(f"cannot read the template file {template}: {error}") from error
    if "{%" not in text and "{{" not in text:
        raise DiveError(f"{template} is no Jinja template: it has neither '{{%' nor '{{{{'")
    return text


def _placeholders(processor: Any, tokenizer: Any) -> list[str]:
    """Texts that may stand for an image, the likeliest first (Gemma 3 expands its opening mark)."""
    found: list[str] = []
    for holder in (processor, tokenizer):
        for name in ("boi_token", "image_token"):
            token = getattr(holder, name, None)
            if isinstance(token, str) and token and token not in found:
                found.append(token)
    if not found:
        raise DiveError(f"{type(processor).__name__} names no image token")
    return found
