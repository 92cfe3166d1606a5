"""A backbone of MedGemma-4B's shape with random weights, and studies of realistic length.

Gemma 3's processor needs a tokenizer: the tiny one of the tests serves, as nothing depends on the
token ids. Its pieces are short; reports have as many tokens as real ones.
"""

import random
from typing import Any

import torch
from PIL import Image
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GenerationConfig,
)

from benchmarks.timing import TOY
from dive import Backbone
from dive.data.study import Study
from tests.models.tiny_templates import GEMMA
from tests.models.tiny_tokenizers import REPORT_LINES, gemma_tokenizer

IMAGE, IMAGE_TOKENS = (56, 4) if TOY else (896, 256)
REPORT_TOKENS = 12 if TOY else 120
VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
TEXT = {
    "vocab_size": 262208,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 1024,
    "max_position_embeddings": 8192,
}
if TOY:
    VISION |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    VISION |= {"num_attention_heads": 2}
    TEXT |= {"vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    TEXT |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def backbone(dtype: torch.dtype, device: torch.device) -> Backbone:
    tokenizer = gemma_tokenizer()
    tokenizer.model_max_length = TEXT["max_position_embeddings"]
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": [tokenizer.eos_token_id, end_of_turn],
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Gemma3Config(
        vision_config={
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
            "image_size": IMAGE,
            **VISION,
        },
        text_config={**TEXT, **ids},
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    config.eos_token_id = ids["eos_token_id"]
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = Gemma3ForConditionalGeneration(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig(**ids)
    images = Gemma3ImageProcessorPil(
        size={"height": IMAGE, "width": IMAGE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        image_seq_length=IMAGE_TOKENS,
    )
    processor = Gemma3Processor(
        images, tokenizer, chat_template=GEMMA, image_seq_length=IMAGE_TOKENS
    )
    return Backbone(model, processor)


def studies(count: int, tokenizer: Any) -> list[Study]:
    """Returns studies with one film and about REPORT_TOKENS tokens of findings each."""
    drawn = random.Random(0)
    side = 64 if TOY else 1024
    found = []
    for index in range(count):
        film = Image.effect_noise((side, side), 40 + index % 20)
        text = ""
        while len(tokenizer.encode(text)) < REPORT_TOKENS:
            text = f"{text} {drawn.choice(REPORT_LINES)}".strip()
        found.append(Study(id=f"s{index}", images=(film,), patient=f"p{index}", findings=text))
    return found
