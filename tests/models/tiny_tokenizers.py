"""Small fast tokenizers of the kinds that real backbones bring, trained on a few report lines.

Byte-level BPE (Qwen, Llama 3), metaspace BPE with byte fallback (Llama 2), the same with spaces
as a normaliser and no prefix space (Gemma), and unigram (sentencepiece). None has unknown pieces:
what the vocabulary lacks becomes bytes.
"""

import json

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

MAX_LENGTH = 4096

REPORT_LINES = """
The heart is normal in size. The mediastinum is unremarkable. The lungs are clear.
No focal consolidation, pleural effusion or pneumothorax is seen.
Heart size and pulmonary vascularity appear within normal limits.
There is a small right pleural effusion with adjacent atelectasis.
Mild cardiomegaly. No evidence of acute cardiopulmonary abnormality.
Streaky bibasilar opacities, most likely atelectasis. No overt pulmonary edema.
Calcified granuloma in the left upper lobe. Degenerative changes of the thoracic spine.
The aorta is tortuous and atherosclerotic. Hyperinflated lungs, compatible with emphysema.
Patchy opacity in the right lower lobe concerning for pneumonia.
Interval placement of an endotracheal tube, 4 cm above the carina. A left chest tube is in place.
Healed rib fractures on the right. No acute bony abnormality. Mild scoliosis.
Findings: Large left pneumothorax with mediastinal shift. Impression: Tension pneumothorax.
Describe the findings of this chest radiograph. Write the impression of this chest X-ray.
Frontal and lateral views. Indication: cough, fever and shortness of breath.
You are a helpful assistant. USER: ASSISTANT: system user assistant model
""".strip().splitlines()

BYTES = [f"<0x{value:02X}>" for value in range(256)]
# Qwen's and Llama 3's pattern: a space goes with the word after it, digits stay apart
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _metaspace_bpe(special: list[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a BPE whose pieces begin with the metaspace sign."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(
        REPORT_LINES * 2,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[*special, *BYTES],
            initial_alphabet=[chr(code) for code in range(33, 127)] + ["▁"],
            show_progress=False,
        ),
    )
    return _vocabulary(tokenizer)


def _vocabulary(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _begin_with(bos: str, tokenizer: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def _byte_level(special: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        REPORT_LINES * 2,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def llama2_tokenizer() -> LlamaTokenizer:
    """As in LLaVA 1.5: metaspace, prefix space, `<image>` and `<pad>` added behind the rest."""
    vocab, merges = _metaspace_bpe(["<unk>", "<s>", "</s>"], size=620)
    tokenizer = LlamaTokenizer(
        vocab=vocab,
        merges=merges,
        pad_token="<pad>",
        add_bos_token=True,
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=MAX_LENGTH,
        padding_side="left",
    )
    return tokenizer


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """A sentencepiece-like unigram model with byte fallback, with Mistral's special tokens."""
    # pieces of a BPE: the trainer of unigram models gives other ones in every process
    special = ["<unk>", "<s>", "</s>", *BYTES]
    pieces = [piece for piece in _metaspace_bpe(special[:3], size=620)[0] if piece not in special]
    # byte pieces behind the special ones, where sentencepiece puts them; never likelier than text
    vocab = [(piece, 0.0) for piece in special[:3]] + [(piece, -30.0) for piece in BYTES]
    vocab += [(piece, -10.0 if len(piece) == 1 else -5.0) for piece in sorted(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.post_processor = _begin_with("<s>", tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=MAX_LENGTH,
        padding_side="left",
    )


def gemma_tokenizer() -> GemmaTokenizer:
    """As in Gemma 3: spaces become metaspaces by a normaliser, no prefix space, bos in front."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    vocab, merges = _metaspace_bpe(special, size=640)
    for piece in ("\n", "\n\n"):
        vocab[piece] = len(vocab)
    tokenizer = GemmaTokenizer(
        vocab=vocab,
        merges=[*merges, ("\n", "\n")],
        add_bos_token=True,
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        model_max_length=MAX_LENGTH,
        padding_side="left",
    )
    tokenizer.add_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t in ("<start_of_turn>", "<end_of_turn>")
        ]
    )
    return tokenizer


def qwen_tokenizer() -> Qwen2Tokenizer:
    """As in Qwen2.5-VL: byte-level, NFC, no bos; ChatML and vision marks are special tokens."""
    marks = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    trained = _byte_level([], size=560)
    vocab, merges = _vocabulary(trained)
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=MAX_LENGTH,
        extra_special_tokens=marks,
    )
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return tokenizer


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """As in Llama 3: byte-level, bos in front by the chat template, `<|eot_id|>` ends a turn."""
    marks = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
    ]
    tokenizer = _byte_level(marks, size=560)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = _begin_with("<|begin_of_text|>", tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        extra_special_tokens=marks,
        model_max_length=MAX_LENGTH,
    )
