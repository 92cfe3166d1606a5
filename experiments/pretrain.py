"""Pretraining of the embedded backbone: `python -m experiments.pretrain --out DIR`.

Two stages, both with a fixed seed, about 35 minutes on one core:

1. the vision tower learns to name findings and severities of drawn pictures, then is frozen;
2. projector and decoder learn documents of one to four studies of one random style with uniform
   cross entropy. Copying a style from earlier studies of the document is the only way to predict
   it, so in-context learning emerges. A separator divides the studies, and the end token is only
   at the end of the document: after a single report the model continues, as a base model does.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from dive.demo import processor as files
from dive.demo.reports import write_report
from dive.demo.style import draw_style
from dive.demo.world import FINDINGS, SIZE, draw_images, draw_labels

SEED = 20260
WIDTH, LAYERS = 160, 4
VISION_WIDTH, VISION_LAYERS = 96, 4
STUDIES_PER_DOCUMENT = (0.04, 0.10, 0.16, 0.70)  # probability of 1, 2, 3, 4
MUON = 2.5  # ratio of the learning rates of matrices and of the rest
WITHOUT_IMAGES = 0.25  # share of documents whose later reports have no picture


def build_model(tokenizer) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=256,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=files.PATCH,
        projection_dim=VISION_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=432,
        num_hidden_layers=LAYERS,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(files.IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=files.IMAGE_TOKENS,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    return model


def pixels(grey: np.ndarray) -> torch.Tensor:
    """Returns drawn pictures as the image processor prepares them: float32 [N, 3, SIZE, SIZE]."""
    scaled = torch.from_numpy(grey).float() / 127.5 - 1.0
    return scaled[:, None].expand(-1, 3, -1, -1)


def cosine(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_tower(model, steps: int, rng: np.random.Generator, batch: int = 64) -> dict:
    """Trains findings and severities on the mean patch token, by a linear head that is dropped."""
    tower = model.model.vision_tower
    head = nn.Sequential(nn.LayerNorm(VISION_WIDTH), nn.Linear(VISION_WIDTH, len(FINDINGS) * 4))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1.5e-3, weight_decay=0.02, betas=(0.9, 0.98))

    def logits(grey):
        with torch.autocast("cpu", torch.bfloat16):
            tokens = tower(pixels(grey)).last_hidden_state[:, 1:]
        return head(tokens.float().mean(1)).view(-1, len(FINDINGS), 4)

    start = time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * cosine(step, steps, 100)
        labels = draw_labels(batch, rng)
        loss = F.cross_entropy(
            logits(draw_images(labels, rng)).flatten(0, 1), torch.from_numpy(labels).flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(
                f"tower {step:5d}  loss {loss.item():.4f}  {time.time() - start:.0f} s", flush=True
            )
    tower.requires_grad_(False)

    from dive.demo.world import HOME, SHIFTED

    scores = {}
    for name, site in (("home", HOME), ("shifted", SHIFTED)):
        labels = draw_labels(2000, rng, site)
        with torch.no_grad():
            found = logits(draw_images(labels, rng, site)).argmax(-1).numpy() > 0
        true = labels > 0
        scores[f"tower_f1_{name}"] = 200.0 * (found & true).sum() / (found.sum() + true.sum())
        print(name, scores[f"tower_f1_{name}"], flush=True)
    return scores


class Documents:
    """Endless documents of studies of one style, from a pool of pictures that is encoded once."""

    def __init__(self, model, tokenizer, pool: int, rng: np.random.Generator):
        self.rng, self.tokenizer = rng, tokenizer
        self.word_id = tokenizer.get_vocab()
        self.split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
        self.prompt = self._ids(files.PROMPT)
        self.labels = draw_labels(pool, rng)
        tower = model.model.vision_tower
        with torch.no_grad():
            self.features = torch.cat(
                [
                    tower(pixels(draw_images(self.labels[i : i + 256], rng))).last_hidden_state[
                        :, 1:
                    ]
                    for i in range(0, pool, 256)
                ]
            )
        self.waiting: list[list[tuple[list[int], list[int], list[int]]]] = []

    def _ids(self, text: str) -> list[int]:
        return [self.word_id[word] for word, _ in self.split(text)]

    def document(self) -> tuple[list[int], list[int], list[int]]:
        """Returns token ids, whether each token is predicted, and the pictures' pool indices."""
        rng, ids, counts, pictures = self.rng, [], [], []
        style = draw_style(rng)
        studies = 1 + int(rng.choice(4, p=STUDIES_PER_DOCUMENT))
        bare_from = int(rng.integers(1, 4)) if rng.random() < WITHOUT_IMAGES else studies
        separator, answer, image, end = (
            self.word_id[t] for t in (files.SEPARATOR, files.ANSWER, files.IMAGE, files.END)
        )
        for n in range(studies):
            picture = int(rng.integers(len(self.labels)))
            if n:
                ids.append(separator)
                counts.append(1)
            if n < bare_from:
                head = [image] * files.IMAGE_TOKENS + self.prompt + [answer]
                ids += head
                counts += [0] * len(head)
                pictures.append(picture)
            report = self._ids(write_report(style, self.labels[picture]))
            ids += report
            counts += [1] * len(report)
        return [*ids, end], [*counts, 1], pictures

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns ids [B, T] padded right, counts [B, T], features [number of pictures * 16, D]."""
        if not self.waiting:  # similar lengths share a batch: little padding
            drawn = sorted((self.document() for _ in range(size * 8)), key=lambda d: len(d[0]))
            groups = [drawn[i : i + size] for i in range(0, len(drawn), size)]
            self.waiting = [groups[i] for i in self.rng.permutation(len(groups))]
        group = self.waiting.pop()
        longest = max(len(ids) for ids, _, _ in group)
        ids = torch.full((size, longest), self.tokenizer.pad_token_id)
        counts = torch.zeros((size, longest))
        for index, (tokens, flags, _) in enumerate(group):
            ids[index, : len(tokens)] = torch.tensor(tokens)
            counts[index, : len(flags)] = torch.tensor(flags, dtype=torch.float32)
        pictures = [p for _, _, shown in group for p in shown]
        return ids, counts, self.features[pictures].flatten(0, 1)


def study_losses(losses: torch.Tensor, ids: torch.Tensor, counts: torch.Tensor, separator: int):
    """Returns the mean loss at the first to fourth study of the documents, list of 4."""
    number = (ids == separator).cumsum(1)
    return [
        (losses * counts * (number == n)).sum().item()
        / max(1.0, (counts * (number == n)).sum().item())
        for n in range(4)
    ]


def train_decoder(
    model, documents: Documents, minutes: float, steps: int, batch: int, lr: float, checkpoint
) -> list[dict]:
    """Trains by uniform cross entropy on reports: Muon on the decoder's matrices, else AdamW."""
    decoder, projector = model.model.language_model, model.model.multi_modal_projector
    matrices = [p for p in decoder.layers.parameters() if p.ndim == 2]
    others = [
        *(p for p in decoder.parameters() if p.ndim != 2),
        decoder.embed_tokens.weight,
        model.lm_head.weight,
        *projector.parameters(),
    ]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON * lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    parameters = [*matrices, *others]
    image = model.config.image_token_index
    separator = documents.word_id[files.SEPARATOR]
    start, tokens, log, by_study = time.time(), 0, [], []
    for step in range(steps):
        for optimizer, factor in zip(optimizers, (MUON, 1.0), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = factor * lr * cosine(step, steps, 40)
        ids, counts, features = documents.batch(batch)
        with torch.autocast("cpu", torch.bfloat16):
            embeds = decoder.embed_tokens(ids)
            seen = projector(features)
            embeds = embeds.masked_scatter((ids == image)[..., None], seen.to(embeds.dtype))
            # Padding is on the right and the decoder is causal: no mask is needed.
            hidden = decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[:, :-1])
        target, counts = ids[:, 1:], counts[:, 1:]
        losses = F.cross_entropy(logits.float().transpose(1, 2), target, reduction="none")
        loss = (losses * counts).sum() / counts.sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        tokens += int((ids != documents.tokenizer.pad_token_id).sum())
        by_study.append(study_losses(losses.detach(), ids[:, :-1], counts, separator))
        if step % 25 == 24 or step == steps - 1:
            means = np.mean(by_study, axis=0).round(3).tolist()
            by_study = []
            log.append({"step": step + 1, "tokens": tokens, "loss_at_study": means})
            print(
                f"decoder {step + 1:5d}  tokens {tokens / 1e6:.2f}M  studies {means}"
                f"  {time.time() - start:.0f} s",
                flush=True,
            )
        if step % 250 == 249:
            checkpoint()
        if minutes and time.time() - start > 60 * minutes:
            break
    return log


def save(model, processor, out: Path) -> None:
    model.save_pretrained(out)
    processor.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the backbone")
    parser.add_argument("--tower-steps", type=int, default=2400)
    parser.add_argument("--decoder-steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=12, help="documents per step")
    parser.add_argument("--pool", type=int, default=24000, help="pictures for the decoder")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--minutes", type=float, default=0, help="stop the decoder after so long")
    parser.add_argument("--tower", type=Path, help="a folder saved after stage 1: start from it")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    start = time.time()
    processor = files.build_processor()
    model = build_model(processor.tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters", flush=True)
    facts: dict = {"seed": SEED, "arguments": {k: str(v) for k, v in vars(args).items()}}
    if args.tower:
        model = LlavaForConditionalGeneration.from_pretrained(args.tower, dtype=torch.float32)
        model.requires_grad_(True).model.vision_tower.requires_grad_(False)
    else:
        facts |= train_tower(model, args.tower_steps, np.random.default_rng([SEED, 1]))
        save(model, processor, args.out / "tower")
    model.model.vision_tower.eval()
    documents = Documents(model, processor.tokenizer, args.pool, np.random.default_rng([SEED, 2]))
    print(f"pool drawn, {time.time() - start:.0f} s", flush=True)
    torch.manual_seed(SEED)
    facts["decoder"] = train_decoder(
        model,
        documents,
        args.minutes,
        args.decoder_steps,
        args.batch,
        args.lr,
        checkpoint=lambda: save(model, processor, args.out / "checkpoint"),
    )
    facts["seconds"] = round(time.time() - start)
    facts["torch"] = torch.__version__
    save(model, processor, args.out)
    (args.out / "pretrain.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
