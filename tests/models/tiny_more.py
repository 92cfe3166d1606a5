"""Further tiny backbones: one whole folder a family, beside those of `tiny.py`.

`FAMILIES` names a writer for each (those of `tiny.py`, too); all are seeded, and nothing is
downloaded. Processor files are laid out as `save_pretrained` of the family's processor class does,
which is not built here: most want a video processor, and with it torchvision.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from tiny import (
    IMAGE,
    INIT,
    _save,
    save_tiny_gemma3,
    save_tiny_llava,
    save_tiny_qwen25_vl,
    text_config,
    vision_config,
)
from tiny_templates import IDEFICS, INTERNVL, MISTRAL, MISTRAL3, ONEVISION, QWEN
from tiny_tokenizers import (
    gemma_tokenizer,
    llama2_tokenizer,
    llama3_tokenizer,
    qwen_tokenizer,
    unigram_tokenizer,
)
from tokenizers import AddedToken
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

PINPOINTS = [[IMAGE, IMAGE], [IMAGE, 2 * IMAGE], [2 * IMAGE, IMAGE]]


def _with_tokens(tokenizer: Any, tokens: list[str]) -> Any:
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return tokenizer


def _with_names(tokenizer: Any, folder: Path, **named: str) -> Any:
    """The tokenizer with more special tokens, which become attributes of it (image_token=...)."""
    _with_tokens(tokenizer, list(named.values())).save_pretrained(folder)
    return type(tokenizer).from_pretrained(folder, extra_special_tokens=named)


def _write(
    folder: Path,
    tokenizer: Any,
    model_type: str,
    config: dict[str, Any],
    *,
    end: str | None = None,
    template: str | None,
    processor: str,
    images: tuple[str, dict[str, Any]],
    video: str | None = None,
    **settings: Any,
) -> Path:
    """Model, tokenizer and processor files; `images` is a class of image processor and what it
    is set to; `settings` are the processor's own."""
    torch.manual_seed(0)
    configuration = CONFIG_MAPPING[model_type](**config)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(configuration)](configuration)
    eos = tokenizer.eos_token_id if end is None else tokenizer.convert_tokens_to_ids(end)
    _save(model, folder, eos, tokenizer)
    tokenizer.save_pretrained(folder)
    name, values = images
    files: dict[str, Any] = {
        "processor_class": processor,
        "image_processor": {"image_processor_type": name, **values},
        **settings,
    }
    if video is not None:
        files["video_processor"] = {"video_processor_type": video, **values}
    (folder / "processor_config.json").write_text(json.dumps(files, indent=2))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def _qwen_marks(tokenizer: Any) -> dict[str, int]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def save_tiny_qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL: at most 8 tokens an image, three-dimensional positions."""
    tokenizer = qwen_tokenizer()
    config = {
        "vision_config": {
            "depth": 2, "embed_dim": 32, "hidden_size": tiny.HIDDEN, "num_heads": 2, "mlp_ratio": 2,
            "initializer_range": INIT,
        },
        "text_config": text_config(tokenizer, bos_token_id=None, rope_parameters=tiny.rope()),
        **_qwen_marks(tokenizer),
    }  # fmt: skip
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 8 * 28 * 28}
    return _write(
        folder, tokenizer, "qwen2_vl", config, end="<|im_end|>", template=QWEN,
        processor="Qwen2VLProcessor", images=("Qwen2VLImageProcessor", {"size": size}),
        video="Qwen2VLVideoProcessor",
    )  # fmt: skip


def save_tiny_qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL: image features go into the first decoder layers, too (deepstack)."""
    tokenizer = qwen_tokenizer()
    config = {
        "vision_config": {
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
            "out_hidden_size": tiny.HIDDEN, "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1], "initializer_range": INIT,
        },
        "text_config": text_config(
            tokenizer,
            bos_token_id=None,
            head_dim=tiny.HIDDEN // 4,
            rope_parameters={**tiny.rope(), "mrope_interleaved": True},
        ),
        **_qwen_marks(tokenizer),
    }  # fmt: skip
    values = {
        "size": {"shortest_edge": 4 * 32 * 32, "longest_edge": 8 * 32 * 32},
        "patch_size": 16,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return _write(
        folder, tokenizer, "qwen3_vl", config, end="<|im_end|>", template=QWEN,
        processor="Qwen3VLProcessor", images=("Qwen2VLImageProcessor", values),
        video="Qwen3VLVideoProcessor",
    )  # fmt: skip


def save_tiny_llava_onevision(folder: Path) -> Path:
    """LLaVA-OneVision: one image is tiled by its shape, several are not."""
    tokenizer = _with_tokens(qwen_tokenizer(), ["<image>", "<video>"])
    ids = tokenizer.convert_tokens_to_ids
    config = {
        "vision_config": vision_config(model_type="siglip_vision_model", vision_use_head=False),
        "text_config": text_config(tokenizer, model_type="qwen2", bos_token_id=None),
        "image_token_index": ids("<image>"),
        "video_token_index": ids("<video>"),
        "image_grid_pinpoints": PINPOINTS,
    }
    values = {"size": {"height": IMAGE, "width": IMAGE}, "image_grid_pinpoints": PINPOINTS}
    return _write(
        folder, tokenizer, "llava_onevision", config, template=ONEVISION,
        processor="LlavaOnevisionProcessor", images=("LlavaOnevisionImageProcessor", values),
        video="LlavaOnevisionVideoProcessor", num_image_tokens=16,
        vision_feature_select_strategy="full",
    )  # fmt: skip


def save_tiny_llava_next(folder: Path) -> Path:
    """LLaVA-NeXT with a CLIP tower and a Mistral decoder: an image is tiled by its shape."""
    tokenizer = unigram_tokenizer()
    config = {
        "vision_config": vision_config(model_type="clip_vision_model", projection_dim=16),
        "text_config": text_config(tokenizer, model_type="mistral"),
        "image_token_index": tokenizer.image_token_id,
        "image_grid_pinpoints": PINPOINTS,
        "image_seq_length": 16,
    }
    values = {
        "size": {"shortest_edge": IMAGE},
        "crop_size": {"height": IMAGE, "width": IMAGE},
        "image_grid_pinpoints": PINPOINTS,
    }
    return _write(
        folder, tokenizer, "llava_next", config, template=MISTRAL,
        processor="LlavaNextProcessor", images=("LlavaNextImageProcessor", values),
        patch_size=14, num_additional_image_tokens=1, vision_feature_select_strategy="default",
    )  # fmt: skip


def save_tiny_idefics3(folder: Path, model_type: str = "idefics3") -> Path:
    """Idefics 3, or SmolVLM, which has its architecture: 4 tokens a tile, marks around them."""
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = _with_tokens(llama3_tokenizer(), [*marks, *tiles])
    ids = tokenizer.convert_tokens_to_ids
    config = {
        "vision_config": vision_config(),
        "text_config": text_config(tokenizer, model_type="llama"),
        "image_token_id": ids("<image>"),
        "scale_factor": 2,
    }
    name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[model_type]
    values = {
        "size": {"longest_edge": 2 * IMAGE},
        "max_image_size": {"longest_edge": IMAGE},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return _write(
        folder, tokenizer, model_type, config, end="<end_of_utterance>", template=IDEFICS,
        processor=f"{name}Processor", images=(f"{name}ImageProcessor", values),
        video="SmolVLMVideoProcessor" if model_type == "smolvlm" else None, image_seq_len=4,
    )  # fmt: skip


def save_tiny_smolvlm(folder: Path) -> Path:
    return save_tiny_idefics3(folder, "smolvlm")


def save_tiny_internvl(folder: Path) -> Path:
    """InternVL: 4 tokens a tile between an opening and a closing mark."""
    tokenizer = _with_names(
        qwen_tokenizer(),
        folder,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = {
        "vision_config": vision_config(image_size=[IMAGE, IMAGE], patch_size=[14, 14]),
        "text_config": text_config(tokenizer, model_type="qwen2", bos_token_id=None),
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "image_seq_length": 4,
        "tie_word_embeddings": False,
    }
    values = {
        "size": {"height": IMAGE, "width": IMAGE},
        "crop_to_patches": True,
        "max_patches": 4,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return _write(
        folder, tokenizer, "internvl", config, end="<|im_end|>", template=INTERNVL,
        processor="InternVLProcessor", images=("GotOcr2ImageProcessor", values),
        video="InternVLVideoProcessor", image_seq_length=4,
    )  # fmt: skip


def save_tiny_paligemma(folder: Path, text: str = "gemma") -> Path:
    """PaliGemma (text="gemma2": PaliGemma 2): no chat template; the prompt attends both ways."""
    tokenizer = _with_names(gemma_tokenizer(), folder, image_token="<image>")
    config = {
        "vision_config": vision_config(model_type="siglip_vision_model", vision_use_head=False),
        "text_config": text_config(
            tokenizer,
            model_type=text,
            head_dim=tiny.HIDDEN // 4,
            **(
                {"sliding_window": 24, "query_pre_attn_scalar": tiny.HIDDEN // 4}
                if text == "gemma2"
                else {}
            ),
        ),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "projection_dim": tiny.HIDDEN,
        "hidden_size": tiny.HIDDEN,
    }
    values = {
        "size": {"height": IMAGE, "width": IMAGE},
        "image_seq_length": 16,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    # room for the marks that this processor adds to its tokenizer
    config["text_config"]["vocab_size"] += 1200
    return _write(
        folder, tokenizer, "paligemma", config, template=None,
        processor="PaliGemmaProcessor", images=("SiglipImageProcessor", values),
    )  # fmt: skip


def save_tiny_paligemma2(folder: Path) -> Path:
    return save_tiny_paligemma(folder, "gemma2")


def save_tiny_mistral3(folder: Path) -> Path:
    """Mistral 3 with a Pixtral tower: an image keeps its shape, each row of it ends in a mark."""
    marks = ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"]
    marks += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    tokenizer = _with_tokens(llama2_tokenizer(), marks)
    config = {
        "vision_config": vision_config(model_type="pixtral", image_size=4 * IMAGE),
        "text_config": text_config(tokenizer, model_type="mistral", head_dim=tiny.HIDDEN // 4),
        "image_token_index": tokenizer.convert_tokens_to_ids("[IMG]"),
        "spatial_merge_size": 2,
        "tie_word_embeddings": False,
    }
    values = {"size": {"longest_edge": 4 * 28}, "patch_size": 14}
    return _write(
        folder, tokenizer, "mistral3", config, template=MISTRAL3,
        processor="PixtralProcessor", images=("PixtralImageProcessor", values),
        patch_size=14, spatial_merge_size=2,
        image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]",
    )  # fmt: skip


# the name in test ids and in docs/backbones.md -> who writes its folder
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "LLaVA": save_tiny_llava,
    "Gemma 3": save_tiny_gemma3,
    "Qwen2.5-VL": save_tiny_qwen25_vl,
    "Qwen2-VL": save_tiny_qwen2_vl,
    "Qwen3-VL": save_tiny_qwen3_vl,
    "LLaVA-OneVision": save_tiny_llava_onevision,
    "LLaVA-NeXT": save_tiny_llava_next,
    "Idefics3": save_tiny_idefics3,
    "SmolVLM": save_tiny_smolvlm,
    "InternVL": save_tiny_internvl,
    "PaliGemma": save_tiny_paligemma,
    "PaliGemma 2": save_tiny_paligemma2,
    "Mistral 3": save_tiny_mistral3,
}
