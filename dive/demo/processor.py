"""Tokenizer, image processor and chat template of the embedded backbone, as ordinary files."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from dive.demo import style as words
from dive.demo.world import SIZE

PATCH = 16
IMAGE_TOKENS = (SIZE // PATCH) ** 2
PROMPT = "describe the radiograph."  # the only prompt the backbone was trained with

PAD, UNKNOWN, END, SEPARATOR, ANSWER, IMAGE = (
    "<pad>",
    "<unk>",
    "</s>",
    "<sep>",
    "<report>",
    "<image>",
)
SPECIAL = (PAD, UNKNOWN, END, SEPARATOR, ANSWER, IMAGE)

# A separator opens every user turn but the first. Nothing closes an assistant's turn: it ends with
# the document, by generation_config.eos_token_id.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<report>"
    "{% elif not loop.first %}<sep>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<report>{% endif %}"
)


def _strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    return (
        [text for item in value for text in _strings(item)]
        if isinstance(value, (tuple, list))
        else []
    )


def vocabulary() -> list[str]:
    """Returns every word and punctuation mark of the reports of all styles, sorted."""
    split = pre_tokenizers.Whitespace()
    tables = [value for name, value in vars(words).items() if name.isupper() and name != "FINDINGS"]
    found = {".", ",", ";", ":"}
    for text in [*_strings(tables), PROMPT]:
        plain = text
        for field in ("{sev}", "{where}", "{term}", "{phrase}"):
            plain = plain.replace(field, " ")
        found |= {piece for piece, _ in split.pre_tokenize_str(plain)}
    return sorted(found)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a lower-case word-level tokenizer; decode(encode(report)) returns the report."""
    vocab = {token: i for i, token in enumerate([*SPECIAL, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),  # words joined by blanks ...
            decoders.Fuse(),
            decoders.Replace(Regex(r" (?=[.,;:])"), ""),  # ... except before punctuation
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[SEPARATOR, ANSWER, IMAGE],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="left",
    )


def build_processor() -> LlavaProcessor:
    """Returns the processor that `dive.load_backbone` finds in the folder of the weights."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )
