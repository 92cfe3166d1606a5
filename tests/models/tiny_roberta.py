"""A RoBERTa of six small layers in the files of distilroberta-base; the same numbers everywhere.

Its vocabulary is written out and its weights are sines, so that another version of transformers or
torch builds the same model: golden numbers of BERTScore are of this one.
"""

import json
from pathlib import Path

import torch

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_MERGES = ("e f", "f u", "ef fu", "s i", "o n", "si on", "effu sion", "Ġ effusion", "Ġ n", "Ġn o",
           "l e", "le f", "Ġ lef", "Ġlef t", "Ġ r", "h e", "Ġ he")  # fmt: skip


def tiny_roberta(folder: Path) -> Path:
    """Writes the model and its tokenizer into `folder`, which it returns."""
    from transformers import RobertaConfig, RobertaModel

    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*_SPECIAL, *_bytes(), *(merge.replace(" ", "") for merge in _MERGES)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *_MERGES, ""])
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 512, "tokenizer_class": "RobertaTokenizer"})
    )
    config = RobertaConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=6, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = RobertaModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for index, (name, weight) in enumerate(sorted(model.named_parameters())):
            steps = torch.arange(weight.numel(), dtype=torch.float64)
            values = torch.sin(steps * steps * (0.37 + 0.11 * index) + index)
            one = name.endswith("LayerNorm.weight")
            weight.copy_((values * (0.2 if weight.dim() == 1 else 0.6) + one).reshape(weight.shape))
    model.save_pretrained(folder)
    return folder


def _bytes() -> list[str]:
    """The letters that stand for the 256 bytes in a byte-level vocabulary (GPT-2's)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in shown}
    hidden = (byte for byte in range(256) if byte not in letters)
    letters |= {byte: chr(256 + number) for number, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]
