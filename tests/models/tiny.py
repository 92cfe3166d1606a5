"""Tiny backbones in whole folders, as `save_pretrained` would leave them, and a folder of studies.

Each writer makes a random model of a real family (seeded, so a folder is the same every time)
with a fast tokenizer of that family's kind, image processor, chat template and generation config.
`dive.load_backbone` reads them like any other. Nothing is downloaded.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tiny_templates import GEMMA, LLAMA3, LLAVA, MISTRAL, QWEN
from tiny_tokenizers import (
    MAX_LENGTH,
    gemma_tokenizer,
    llama2_tokenizer,
    llama3_tokenizer,
    qwen_tokenizer,
    unigram_tokenizer,
)
from transformers import (
    CLIPImageProcessorPil,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

HIDDEN = 32
LAYERS = 3
IMAGE = 56
# wide enough that images, prompts and adapters visibly move the logits of a random model
INIT = 0.12


def text_config(tokenizer, **more) -> dict:
    return {
        "vocab_size": -(-len(tokenizer) // 8) * 8,  # padded, as real checkpoints are
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_LENGTH,
        "initializer_range": INIT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


@contextmanager
def of_width(hidden_size: int) -> Iterator[None]:
    """Inside, backbones are written with this hidden size, and a quarter of it per head."""
    global HIDDEN
    usual, HIDDEN = HIDDEN, hidden_size
    try:
        yield
    finally:
        HIDDEN = usual


def rope() -> dict:
    """The rotary embedding of Qwen-VL, in parts for time, height and width."""
    pairs = HIDDEN // 8
    parts = [pairs // 4, pairs // 4, pairs // 2]
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": parts}


def vision_config(**more) -> dict:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE,
        "patch_size": 14,
        "initializer_range": INIT,
        **more,
    }


def _save(model: PreTrainedModel, folder: Path, eos: int | list[int], tokenizer) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos,
        pad_token_id=tokenizer.pad_token_id,
        max_length=None,
    )
    model.eval().save_pretrained(folder)


def save_tiny_llava(folder: str | Path, text: str = "llama") -> Path:
    """LLaVA with a CLIP tower: 16 tokens an image; `text` is "llama" or "mistral"."""
    torch.manual_seed(0)
    folder = Path(folder)
    tokenizer = {"llama": llama2_tokenizer, "mistral": unigram_tokenizer}[text]()
    config = LlavaConfig(
        vision_config=vision_config(model_type="clip_vision_model", projection_dim=16),
        text_config=text_config(tokenizer, model_type=text),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16,
    )
    _save(LlavaForConditionalGeneration(config), folder, tokenizer.eos_token_id, tokenizer)
    LlavaProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE}
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template={"llama": LLAVA, "mistral": MISTRAL}[text],
    ).save_pretrained(folder)
    return folder


def save_tiny_gemma3(folder: str | Path) -> Path:
    """Gemma 3 with a SigLIP tower: 4 tokens an image, two sliding layers and a full one."""
    torch.manual_seed(0)
    folder = Path(folder)
    tokenizer = gemma_tokenizer()
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    config = Gemma3Config(
        vision_config=vision_config(model_type="siglip_vision_model", vision_use_head=False),
        text_config=text_config(
            tokenizer,
            head_dim=HIDDEN // 4,
            sliding_window=48,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            query_pre_attn_scalar=HIDDEN // 4,
        ),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        initializer_range=INIT,
        eos_token_id=[tokenizer.eos_token_id, end_of_turn],
    )
    model = Gemma3ForConditionalGeneration(config)
    _save(model, folder, [tokenizer.eos_token_id, end_of_turn], tokenizer)
    Gemma3Processor(
        Gemma3ImageProcessorPil(
            size={"height": IMAGE, "width": IMAGE},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            image_seq_length=4,
        ),
        tokenizer,
        chat_template=GEMMA,
        image_seq_length=4,
    ).save_pretrained(folder)
    return folder


def save_tiny_qwen25_vl(folder: str | Path) -> Path:
    """Qwen2.5-VL: at most 8 x 28 x 28 pixels (8 tokens) an image, ChatML.

    The processor's files are written piece by piece, for its class needs a video processor, which
    transformers cannot build without torchvision. They are laid out as its `save_pretrained` does.
    """
    torch.manual_seed(0)
    folder = Path(folder)
    tokenizer = qwen_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1],
            "initializer_range": INIT,
        },
        text_config=text_config(
            tokenizer,
            bos_token_id=None,
            rope_parameters=rope(),
        ),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    _save(model, folder, [ids("<|im_end|>"), ids("<|endoftext|>")], tokenizer)
    tokenizer.save_pretrained(folder)
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 4 * 28 * 28, "longest_edge": 8 * 28 * 28}
    )
    processor = {
        "processor_class": "Qwen2_5_VLProcessor",
        "image_processor": {**images.to_dict(), "image_processor_type": "Qwen2VLImageProcessor"},
        "video_processor": {
            **images.to_dict(),
            "video_processor_type": "Qwen2VLVideoProcessor",
            "image_processor_type": None,
        },
    }
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2, default=str))
    (folder / "chat_template.jinja").write_text(QWEN)
    return folder


def save_tiny_llama(folder: str | Path) -> Path:
    """A plain text decoder with Llama 3's tokenizer and template; its head is tied."""
    torch.manual_seed(0)
    folder = Path(folder)
    tokenizer = llama3_tokenizer()
    tokenizer.chat_template = LLAMA3
    config = LlamaConfig(**text_config(tokenizer, tie_word_embeddings=True))
    _save(LlamaForCausalLM(config), folder, tokenizer.eos_token_id, tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


FINDINGS = [
    ("The heart is normal in size. The lungs are clear.", "No acute cardiopulmonary abnormality."),
    ("There is a small right pleural effusion.", "Right pleural effusion."),
    ("Mild cardiomegaly. No pneumothorax.", "Cardiomegaly."),
    ("Patchy opacity in the left lower lobe. No effusion.", "Left lower lobe pneumonia."),
    ("Calcified granuloma in the left upper lobe.", "No acute disease."),
    ("Streaky bibasilar opacities, likely atelectasis.", "Bibasilar atelectasis."),
]


def draw_film(seed: int, size: tuple[int, int] = (64, 72), mode: str = "L") -> Image.Image:
    """A picture that is faintly a chest film: two dark lungs, a heart, one mark a seed places."""
    width, height = size
    image = Image.new(mode, size, 200 if mode == "L" else (200, 200, 200))
    draw = ImageDraw.Draw(image)
    dark, mark = (40, 220 - 20 * seed) if mode == "L" else ((40,) * 3, (220 - 20 * seed,) * 3)
    draw.ellipse((width * 0.1, height * 0.1, width * 0.45, height * 0.9), fill=dark)
    draw.ellipse((width * 0.55, height * 0.1, width * 0.9, height * 0.9), fill=dark)
    x, y = width * (0.15 + 0.1 * (seed % 5)), height * (0.2 + 0.1 * (seed % 6))
    draw.ellipse((x, y, x + 12, y + 12), fill=mark)
    return image


def save_studies(folder: str | Path, count: int = 6) -> Path:
    """Writes PNG and JPG films and `studies.jsonl`; every third study has a lateral view too.

    Patients have two studies each; the first study of a patient has an indication.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        findings, impression = FINDINGS[index % len(FINDINGS)]
        frontal = f"images/{index:02d}_frontal.{'png' if index % 2 else 'jpg'}"
        draw_film(index, mode="L" if index % 2 else "RGB").save(folder / frontal)
        images = [frontal]
        if index % 3 == 2:
            images.append(f"images/{index:02d}_lateral.png")
            draw_film(index + 1, size=(80, 60)).save(folder / images[-1])
        row = {"id": f"study-{index:02d}", "images": images, "patient": f"p{index // 2}"}
        if index % 2 == 0:
            row["indication"] = "Cough and fever."
        rows.append({**row, "findings": findings, "impression": impression})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "studies.jsonl").write_text(lines, encoding="utf-8")
    return folder
