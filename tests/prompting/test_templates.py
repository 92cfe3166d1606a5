"""Properties found in a chat template: content form, placeholder, end of turn, refusals."""

import json
import warnings
from contextlib import nullcontext

import pytest
from tiny_features import needs
from tiny_more import FAMILIES

import dive
from dive.errors import DiveError
from dive.prompting.templates import ChatTemplate, assistant_turn, user_turn

IMAGE = {
    "LlavaProcessor": "<image>",
    "Qwen2_5_VLProcessor": "<|image_pad|>",
    "Gemma3Processor": "<start_of_image>",
}


def template_of(backbone, template=None):
    return ChatTemplate(backbone.processor, backbone.tokenizer, template)


def test_own_templates_are_read(any_backbone):
    template = template_of(any_backbone)
    own = getattr(any_backbone.processor, "chat_template", None)
    assert template.source == own and not template.is_custom and not template.plain
    assert template.placeholder == IMAGE.get(type(any_backbone.processor).__name__)
    images = 0 if template.placeholder is None else 2
    text = template.render([user_turn("What is it?", images)])
    assert text.count("What is it?") == 1
    if images:
        assert text.count(template.placeholder) == 2
        assert text.index(template.placeholder) < text.index("What is it?")
    # the same conversation by transformers
    messages = [
        user_turn("What is it?", images),
        assistant_turn("Fine."),
        user_turn("And?", images),
    ]
    assert template.render(messages) == any_backbone.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )


END = {
    "LlavaForConditionalGeneration": "</s>",  # llama and mistral
    "Qwen2_5_VLForConditionalGeneration": "<|im_end|>",
    "Gemma3ForConditionalGeneration": "<end_of_turn>",
    "LlamaForCausalLM": "<|eot_id|>",
}


def test_the_token_that_closes_a_turn(any_backbone):
    tokenizer = any_backbone.tokenizer
    wanted = tokenizer.convert_tokens_to_ids(END[type(any_backbone.model).__name__])
    eos = any_backbone.model.generation_config.eos_token_id
    listed = eos if isinstance(eos, list) else [eos]
    template = template_of(any_backbone)
    assert template.close(listed) == template.close(listed[::-1]) == wanted
    if any_backbone.processor is tokenizer or "</s>" not in tokenizer.get_vocab():
        # the template alone says so
        assert template.close([]) == wanted


def test_the_end_falls_back_to_generation_config_and_then_the_tokenizer(tiny_llava):
    backbone = dive.load_backbone(tiny_llava)  # its template writes nothing after an answer
    template = template_of(backbone)
    assert template.close([7, 9]) == 7
    assert template.close([]) == backbone.tokenizer.eos_token_id
    backbone.tokenizer.eos_token = None
    with pytest.raises(DiveError, match="no token ends a report"):
        template.close([])


def test_a_longer_end_token_wins_over_its_beginning(tiny_qwen):
    backbone = dive.load_backbone(tiny_qwen)
    backbone.tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_end|>\n<done>"]})
    long = backbone.tokenizer.convert_tokens_to_ids("<|im_end|>\n<done>")
    template = template_of(backbone, backbone.processor.chat_template.replace(
        "{% endfor %}<|im_end|>\n", "{% endfor %}<|im_end|>\n<done>"))  # fmt: skip
    assert template.close([]) == long


TEXT_ONLY = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
ANSWER_AS_TEXT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}U:"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% else %}A: {{ message['content'] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)


def test_templates_of_plain_text_content(tiny_llava):
    backbone = dive.load_backbone(tiny_llava)
    messages = [user_turn("Look.", 2), assistant_turn("Clear."), user_turn("Now?", 1)]
    template = template_of(backbone, TEXT_ONLY)
    assert template.is_custom
    assert template.render(messages) == (
        "<user> <image>\n<image>\nLook.\n<assistant> Clear.\n<user> <image>\nNow?\n<assistant>"
    )
    assert template.lead == " "
    mixed = template_of(backbone, ANSWER_AS_TEXT)
    assert mixed.render(messages) == "U:<image><image>Look.A: Clear.</s>U:<image>Now?A: "
    assert mixed.lead == "" and mixed.hash != template.hash and len(mixed.hash) == 16


def test_no_template_takes_the_plain_one(any_backbone):
    processor, tokenizer = any_backbone.processor, any_backbone.tokenizer
    own = processor.chat_template
    processor.chat_template = tokenizer.chat_template = None
    sees = getattr(processor, "image_processor", None) is not None
    said = pytest.warns(UserWarning, match="has no chat template") if sees else nullcontext()
    try:
        with said:
            template = template_of(any_backbone)
    finally:
        processor.chat_template = tokenizer.chat_template = own
    assert template.plain and not template.is_custom
    images = 0 if template.placeholder is None else 1
    shown = f"{template.placeholder}\n" * images
    text = template.render(
        [user_turn("Look.", images), assistant_turn("Clear."), user_turn("Now?", images)]
    )
    end = tokenizer.eos_token
    assert text == f"User: {shown}Look.\nAssistant: Clear.{end}\nUser: {shown}Now?\nAssistant:"
    assert template.close([]) == tokenizer.eos_token_id
    assert template.lead == " "


def test_a_template_from_a_file(tiny_llama, tmp_path):
    backbone = dive.load_backbone(tiny_llama)
    (tmp_path / "mine.jinja").write_text(TEXT_ONLY)
    template = template_of(backbone, tmp_path / "mine.jinja")
    assert template.source == TEXT_ONLY and template.hash == template_of(backbone, TEXT_ONLY).hash
    with pytest.raises(DiveError, match="cannot read the template file .*none.jinja"):
        template_of(backbone, tmp_path / "none.jinja")
    (tmp_path / "no.jinja").write_text("hello")
    with pytest.raises(DiveError, match="no.jinja is no Jinja template"):
        template_of(backbone, str(tmp_path / "no.jinja"))
    (tmp_path / "latin.jinja").write_bytes(b"{{ '\xe9' }}")
    with pytest.raises(DiveError, match="cannot read the template file"):
        template_of(backbone, tmp_path / "latin.jinja")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ messages | length }}",
            "renders no conversation of an image, a question and an answer",
        ),
        (
            "{% for m in messages %}{{ m['content'] }}",
            "renders no conversation.*TemplateSyntaxError",
        ),
        ("{{ raise_exception('only for dogs') }}", "renders no conversation.*only for dogs"),
        # the image is lost
        ("{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}", "it renders 'Qqzx"),
    ],
)
def test_unusable_templates(tiny_llava, template, message):
    with pytest.raises(DiveError, match=message):
        template_of(dive.load_backbone(tiny_llava), template)


def test_conversations_that_a_template_refuses(tiny_llava_mistral, tiny_gemma, tiny_llama):
    mistral = template_of(dive.load_backbone(tiny_llava_mistral))
    with pytest.raises(DiveError, match="refuses the conversation: Only user and assistant roles"):
        mistral.render([{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}])
    with pytest.raises(DiveError, match="has 1 images, and the chat template shows 2 of them"):
        mistral.render([user_turn("What does <image> mean?", 1)])
    gemma = template_of(dive.load_backbone(tiny_gemma))
    with pytest.raises(DiveError, match="refuses the conversation: Conversation roles must altern"):
        gemma.render([user_turn("One.", 1), user_turn("Two.", 1)])
    llama = template_of(dive.load_backbone(tiny_llama))
    with pytest.raises(DiveError, match="is a text model; it takes no image, got 2"):
        llama.render([user_turn("One.", 2)])


def test_neither_template_nor_end_token(tiny_llama):
    backbone = dive.load_backbone(tiny_llama)
    backbone.tokenizer.chat_template = backbone.tokenizer.eos_token = None
    with pytest.raises(DiveError, match="neither a chat template nor an end-of-sequence token"):
        template_of(backbone)


@pytest.mark.parametrize("lost", ["missing", "empty"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if "PaliGemma" not in name])
def test_a_folder_that_lost_its_template_is_said(tmp_path, family, lost):
    needs(family)
    folder = FAMILIES[family](tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    if lost == "empty":
        (folder / "chat_template.jinja").write_text("")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    backbone = dive.load_backbone(folder)
    with pytest.warns(UserWarning, match=r"has no chat template \(chat_template.jinja\)"):
        template_of(backbone)


def test_paligemma_has_no_template_to_lose(tmp_path):
    backbone = dive.load_backbone(FAMILIES["PaliGemma"](tmp_path / "model"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert template_of(backbone).plain
