"""The prompter: studies and demonstrations as token ids, with the position of the answer."""

import inspect
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dive.backbone.image_check import check_settings
from dive.backbone.image_processor import budget_kwargs
from dive.backbone.image_special_tokens import check_image_special_tokens
from dive.backbone.load import Backbone
from dive.backbone.processor_check import check_features, check_types, with_model_settings
from dive.backbone.structure import text_config, unwrap
from dive.data.study import Study, check_target
from dive.errors import DiveError, checks
from dive.errors.private import refused
from dive.errors.renamed import renamed_attribute
from dive.prompting.batch import collate, sequence_names
from dive.prompting.templates import ChatTemplate, assistant_turn, names_file, user_turn
from dive.prompting.tokenizer import (
    Embedded,
    appended_by,
    check_tokenizer,
    context_of,
    generation_eos,
    special_tokens,
)

log = logging.getLogger(__name__)

DEFAULT_PROMPTS = {
    "findings": "Describe the findings of this chest radiograph.",
    "impression": "Write the impression of this chest radiograph.",
    "both": "Write the findings and the impression of this chest radiograph.",
}
DEFAULT_MAX_IMAGE_TOKENS = 576


class Response(NamedTuple):
    """A report as the answer that a model is taught.

    ids holds the report's tokens, then the token that closes the turn, and nothing after it.
    offsets[i] is the span (start, end) in `text` of ids[i], for the report's tokens only:
    len(offsets) == len(ids) - 1.
    """

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


class Prompter:
    """Prompts for one backbone, by its own processor and chat template.

    The user's text is the prompt, and before it "Indication: ..." where a study has one.

    Args:
        backbone: model and processor.
        prompt: the instruction to the model; None takes `DEFAULT_PROMPTS[target]`.
        target: "findings", "impression" or "both".
        max_image_tokens: budget of tokens per image. Processors that keep an image's size (the
            Qwen-VL line, Pixtral) scale larger images down to it, and tiling is turned off. A
            processor with a fixed number of tokens, or without a setting for tiling (LLaVA-NeXT,
            LLaVA-OneVision), is left as it is; a warning says where that is above the budget.
            None: no budget, and tiling as the processor has it.
        template: a Jinja chat template (file, or its text) in place of the model's own.
        template_date: the date for templates that print it, as "2024-07-26" or a
            `datetime.date`; None: today's, as long as this prompter lives.

    Attributes:
        template_hash: a digest of the chat template in use, and of what it renders.
        template_date: None where the template prints no date.
        end_token_id: the token that closes the assistant's turn (the EOS event in training).
        eos_token_ids: every token at which generation stops, `end_token_id` first.
        max_length: context in tokens: the decoder's positions, or the tokenizer's own limit
            (model_max_length) where that is less; None without either.
        image_settings: arguments of its processor that follow from the budget.

    Raises:
        DiveError: no usable template, no end token, a processor whose settings do not fit the model
            (its number of image tokens is not that of the model's features).
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        prompt: str | None = None,
        target: str = "findings",
        max_image_tokens: int | None = DEFAULT_MAX_IMAGE_TOKENS,
        template: str | Path | None = None,
        template_date: Any = None,
    ) -> None:
        check_target(target)
        if prompt is not None and not checks.text("prompt", prompt).strip():
            raise DiveError("the prompt is empty")
        if max_image_tokens is not None:
            max_image_tokens = checks.whole("max_image_tokens", max_image_tokens, 1)
        if names_file(template):
            template = checks.path("template", template)
        self.backbone = backbone
        self.processor = backbone.processor
        self.tokenizer = backbone.tokenizer
        check_tokenizer(self.processor, self.tokenizer)
        self.sees = getattr(self.processor, "image_processor", None) is not None
        self.prompt = DEFAULT_PROMPTS[target] if prompt is None else prompt
        self.target = target
        self.max_image_tokens = max_image_tokens
        if self.sees:
            self.processor = with_model_settings(self.processor, backbone)
            check_settings(self.processor, stacklevel=4)
            check_types(self.processor, backbone)
            check_image_special_tokens(self.processor)
        self.template = ChatTemplate(self.processor, self.tokenizer, template, template_date)
        self.template_hash, self.template_date = self.template.hash, self.template.date
        generation_ids = generation_eos(backbone.model)
        self.end_token_id = self.template.close(generation_ids)
        self.eos_token_ids = list(dict.fromkeys([self.end_token_id, *generation_ids]))
        self._embedded = Embedded(backbone.model, backbone.image_token_id)
        self._embedded.check([self.end_token_id], "the chat template's end of a turn")
        self._embedded.check(self._before_answer[1], "the chat template")
        self._embedded.check(self.tokenizer(self.prompt)["input_ids"], "the prompt")
        pad = self.tokenizer.pad_token_id
        # padding is masked, so any token will do
        usable = pad is not None and pad in self._embedded
        self.pad_token_id: int = pad if usable else self.eos_token_ids[0]
        self.max_length, self._limited_by = context_of(backbone.model, self.tokenizer)
        self._special = special_tokens(self.tokenizer, backbone.image_token_id)
        self._check_plain(self.prompt, "the prompt")
        self._appended = appended_by(self.tokenizer)
        self.image_settings = budget_kwargs(self.processor, max_image_tokens) if self.sees else {}
        self._over_budget = False
        # In the PaliGemma line type 0 is a prompt with bidirectional attention, 1 the causal
        # answer; elsewhere 0 is text. (Gemma 4 has "vision" here: only images attend both ways.)
        both_ways = getattr(text_config(backbone.model), "use_bidirectional_attention", None)
        self._answer_type = 1 if both_ways is True else 0
        if self.sees:
            check_features(backbone, self.processor, self.image_settings, self._one_image)

    @property
    def context(self) -> str:
        """`max_length` in words, for messages."""
        return f"the model's context is {self.max_length}{self._limited_by}"

    # conversations

    def messages(self, study: Study, demonstrations: Sequence[Study] = ()) -> list[dict[str, Any]]:
        """Each demonstration as a user's and an assistant's turn, then the study's user turn."""
        turns = []
        for shown in demonstrations:
            turns.append(user_turn(self._user_text(shown), len(shown.images)))
            report = shown.report(self.target)
            self._check_plain(report, f"{shown.where}: the report")
            turns.append(assistant_turn(report))
        return [*turns, user_turn(self._user_text(study), len(study.images))]

    def render(self, study: Study, demonstrations: Sequence[Study] = ()) -> str:
        """The prompt as text, up to where the assistant begins, with one placeholder per image."""
        for one in (*demonstrations, study):
            if self.sees and not one.images:
                raise DiveError(f"{one.where}: has no image, want one or more")
        messages = self.messages(study, demonstrations)  # its errors name a study themselves
        try:
            return self.template.render(messages)
        except DiveError as error:
            raise DiveError(f"{study.where}: {error}") from error

    def encode(self, study: Study, demonstrations: Sequence[Study] = ()) -> dict[str, Tensor]:
        """One prompt as the model's inputs: sequence tensors [1, T], images as its forward takes
        them.

        On the CPU, images in float32.

        Raises:
            DiveError: an image cannot be read, the template does not take the study, or the prompt
                is longer than the model's context.
        """
        batch = self.encode_any_length(study, demonstrations)
        length, images = batch["input_ids"].shape[1], self.count_image_tokens(batch)
        count = sum(len(one.images) for one in (*demonstrations, study))
        self.check_prompt(study, length, images, count, len(demonstrations))
        return batch

    def check_prompt(
        self, study: Study, length: int, image_tokens: int, images: int, demonstrations: int = 0
    ) -> None:
        """Raise DiveError where a prompt of `length` tokens leaves no capacity for an answer; warn
        once where images take more tokens than their budget."""
        if self.max_length is not None and length >= self.max_length:
            shown = f" with {demonstrations} demonstrations" if demonstrations else ""
            raise DiveError(
                f"{study.where}: the prompt{shown} has {length} tokens "
                f"({image_tokens} of them for images); {self.context}"
            )
        budget = self.max_image_tokens
        if budget is not None and image_tokens > budget * images and not self._over_budget:
            self._over_budget = True  # once is enough
            log.warning(
                "%s: %d tokens per image, and max_image_tokens is %d: %s has no setting for fewer",
                study.where,
                image_tokens // images,
                budget,
                type(self.processor.image_processor).__name__,
            )

    def encode_any_length(
        self, study: Study, demonstrations: Sequence[Study] = ()
    ) -> dict[str, Tensor]:
        """Like `encode`, for a prompt that may exceed the model's context."""
        text, add = self._text_to_encode(study, demonstrations)
        if self.sees:
            images = [image for one in (*demonstrations, study) for image in one.load_images()]
            try:
                encoded = self.processor(
                    text=[text],
                    images=[images],
                    add_special_tokens=add,
                    return_tensors="pt",
                    **self.image_settings,
                )
            except MemoryError:
                raise
            except Exception as error:  # a processor's own code may raise anything
                what = f"{study.where}: the processor refuses the prompt"
                raise refused(what, error, (*demonstrations, study)) from error
        else:
            encoded = self.tokenizer([text], add_special_tokens=add, return_tensors="pt")
        batch = {
            name: value
            for name, value in encoded.items()
            if isinstance(value, Tensor) and name != "labels"  # PaliGemma's processor makes labels
        }
        if add and self._appended:
            for name in sequence_names(batch):
                batch[name] = batch[name][:, : -self._appended]
        self._embedded.check(batch["input_ids"], f"{study.where}: the prompt")
        return batch

    def ids_before_expansion(self, study: Study, demonstrations: Sequence[Study] = ()) -> list[int]:
        """The ids of the prompt with one placeholder per image, as an engine takes them that makes
        image tokens of placeholders itself. No image is opened."""
        text, add = self._text_to_encode(study, demonstrations)
        ids: list[int] = self.tokenizer(text, add_special_tokens=add)["input_ids"]
        return ids[: -self._appended] if add and self._appended else ids

    def _text_to_encode(self, study: Study, demonstrations: Sequence[Study]) -> tuple[str, bool]:
        """The prompt as text, and whether the tokenizer adds its special tokens to it."""
        text = self.render(study, demonstrations)
        bos = self.tokenizer.bos_token
        # templates of text models write their own bos; processors add one unless it is there
        return text, (self.sees or self.template.plain) and not (bos and text.startswith(bos))

    # answers

    def response(self, study: Study) -> Response:
        """The study's report as answer ids, tokenised as they follow the generation prompt.

        Raises:
            DiveError: no report, a tokenizer without offsets, or a report with a special token.
        """
        return self.response_of(study.report(self.target), study.where)

    def response_of(self, text: str, where: str) -> Response:
        """As `response`, of a text that may be empty: then only the turn ends. where: the study as
        messages name it."""
        self._check_plain(text, f"{where}: the report")
        if not self.tokenizer.is_fast:
            raise DiveError(
                f"{type(self.tokenizer).__name__} returns no character offsets, which locate "
                "decisive tokens, want a fast tokenizer (tokenizer.json)"
            )
        if not text:
            return Response(text, [self.end_token_id], [])
        # tokenised in context: a space before the first word belongs to its token, or to none
        before, opening = self._before_answer
        start = len(before) + len(self.template.lead)
        whole = self.tokenizer(
            before + self.template.lead + text,
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        ids, offsets = whole["input_ids"], whole["offset_mapping"]
        if ids[: len(opening)] == opening:
            ids, offsets = ids[len(opening) :], offsets[len(opening) :]
        else:
            alone = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets, start = alone["input_ids"], alone["offset_mapping"], 0
        special = {*self.tokenizer.all_special_ids, *self.eos_token_ids}
        special.discard(self.tokenizer.unk_token_id)
        for index in ids:
            if index in special:
                raise DiveError(
                    f"{where}: the report holds the special token "
                    f"{self.tokenizer.convert_ids_to_tokens(index)!r}, want plain text"
                )
        self._embedded.check(ids, f"{where}: the report")
        spans = [(max(first - start, 0), max(last - start, 0)) for first, last in offsets]
        return Response(text, [*ids, self.end_token_id], spans)

    @cached_property
    def _before_answer(self) -> tuple[str, list[int]]:
        """The text before an answer, and its tokens."""
        before = self.template.anchor()
        return before, self.tokenizer(before, add_special_tokens=False)["input_ids"]

    def with_response(
        self, encoded: dict[str, Tensor], response_ids: Sequence[int]
    ) -> dict[str, Tensor]:
        """The prompt followed by the answer.

        Further sequence tensors continue with the value of text, or of an answer where a model
        distinguishes the two.

        Raises:
            DiveError: both together are longer than the model's context.
        """
        count = len(response_ids)
        self.check_answer(encoded["input_ids"].shape[1], count)
        joined = dict(encoded)
        for name in sequence_names(encoded):
            value = encoded[name]
            if name == "input_ids":
                more = torch.tensor([list(response_ids)], dtype=value.dtype)
            elif name == "attention_mask":
                more = value.new_ones(1, count)
            elif name == "token_type_ids":
                more = value.new_full((1, count), self._answer_type)
            elif value.ndim == 2:
                more = value.new_zeros(1, count)  # 0 is text in mm_token_type_ids and the like
            else:
                # a mask over images per position: the answer sees what the end of the prompt sees
                more = value[:, -1:].expand(-1, count, *value.shape[2:])
            joined[name] = torch.cat([value, more], dim=1)
        return joined

    def check_answer(self, prompt: int, answer: int) -> None:
        """Raise DiveError where these tokens of prompt and answer exceed the model's context."""
        if self.max_length is not None and prompt + answer > self.max_length:
            raise DiveError(
                f"prompt and report have {prompt + answer} tokens, {answer} of them for the "
                f"report; {self.context}"
            )

    # batches

    def collate(self, batch: Sequence[dict[str, Tensor]], side: str = "left") -> dict[str, Tensor]:
        """One batch of prompts, padded at `side`: left for generating, right for training."""
        return collate(batch, self.pad_token_id, side)

    def slim(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch on its device, with images in the model's dtype: for most models half the bytes
        to keep, and to send from one process to another."""
        dtype = self.backbone.dtype
        return {n: v.to(dtype) if v.is_floating_point() else v for n, v in batch.items()}

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch on the model's device, images in the model's dtype."""
        return {
            name: value.to(
                self.backbone.device,
                dtype=self.backbone.dtype if value.is_floating_point() else None,
            )
            for name, value in batch.items()
        }

    place = renamed_attribute("place", "to_device")

    # images

    def count_image_tokens(self, encoded: dict[str, Tensor]) -> int:
        """The number of image tokens in a prompt."""
        token = self.backbone.image_token_id
        return 0 if token is None else int((encoded["input_ids"] == token).sum())

    def _one_image(self) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        """A prompt with one image, the image's own inputs, and its number of image tokens."""
        image = Image.new("RGB", (96, 72))
        image.paste((255, 255, 255), (48, 0, 96, 72))  # half white: the range of the pixels shows
        study = Study(id="a blank image", images=(image,))
        encoded = self.encode_any_length(study)
        sequences = set(sequence_names(encoded))
        base: Any = unwrap(self.backbone).base_model
        takes = inspect.signature(base.get_image_features).parameters
        images = {n: v for n, v in encoded.items() if n not in sequences and n in takes}
        return self.to_device(encoded), self.to_device(images), self.count_image_tokens(encoded)

    # adapters

    def metadata(self) -> dict[str, Any]:
        """The settings that an adapter stores, to be prompted as it was trained."""
        return {
            "prompt": self.prompt,
            "target": self.target,
            "max_image_tokens": self.max_image_tokens,
            "template": self.template.source if self.template.is_custom else None,
            **self.template.metadata(),
            "end_token_id": self.end_token_id,
            "eos_token_ids": self.eos_token_ids,
        }

    def _user_text(self, study: Study) -> str:
        indication = (study.indication or "").strip()
        self._check_plain(indication, f"{study.where}: the indication")
        return f"Indication: {indication}\n{self.prompt}" if indication else self.prompt

    def _check_plain(self, text: str, what: str) -> None:
        """Raise DiveError for text with special tokens (an image, the end of a turn)."""
        found = self._special.search(text)
        if found is not None:
            raise DiveError(
                f"{what} holds the special token {found.group()!r}, want plain text (images and "
                "turns come from the chat template)"
            )
