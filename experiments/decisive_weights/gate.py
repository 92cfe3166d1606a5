"""The gate of the study: whether there is room above arm U for weights to act in.

    python -m experiments.decisive_weights.gate

A logistic probe reads each rare finding from the picture's tokens as the decoder is shown them. It
learns from thousands of labelled studies, so it is a ceiling and no competitor. The study may begin
if its AUROC, averaged over the development hospitals, is at least 0.04 above that of arm U.
"""

import json
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dive.demo.methods import BACKBONE
from dive.demo.world import draw_images, to_image
from experiments.compare_methods import load
from experiments.decisive_weights.pilot import PILOT
from experiments.decisive_weights.protocol import DEVELOPMENT
from experiments.decisive_weights.scores import auroc, image_tokens
from experiments.decisive_weights.world import (
    RARE,
    RARE_NAMES,
    SITE,
    draw_severities,
    enrich,
    open_hospital,
)

PROBED = 6000  # studies that the probe learns from, half of them with a rare finding
DECAY = 1e-3


@torch.no_grad()
def seen(backbone: Any, images: list[Any]) -> Tensor:
    """Returns the image tokens that the decoder is shown, [count, tokens * D]."""
    processor, model = backbone.processor.image_processor, backbone.model
    parts = []
    for first in range(0, len(images), 200):
        pixels = processor(images[first : first + 200], return_tensors="pt")["pixel_values"]
        parts.append(image_tokens(model, pixels).flatten(1))
    return torch.cat(parts)


def probe(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Fits one logistic regression per finding: weights [F, D] and biases [F]."""
    weight = torch.zeros(labels.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(labels.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = features @ weight.T + bias
        loss = F.binary_cross_entropy_with_logits(logits, labels) + DECAY * weight.pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def main() -> None:
    import dive

    backbone = dive.load_backbone(BACKBONE, dtype="float32", device="cpu")
    rng = np.random.default_rng([84])
    severities = draw_severities(PROBED, rng)
    enrich(severities[: PROBED // 2], rng)
    pictures = [to_image(picture) for picture in draw_images(severities, rng, SITE)]
    features = seen(backbone, pictures)
    mean_, spread = features.mean(0), features.std(0).clamp(min=1e-6)
    labels = torch.from_numpy((severities[:, RARE] > 0).astype(np.float32))
    weight, bias = probe((features - mean_) / spread, labels)
    records = [one for one in load(PILOT) if one["part"] == "pilot" and one["arm"] == "U"]
    uniform = {one["hospital"]: mean(one["rare_auroc"].values()) for one in records}
    found = {}
    for number in DEVELOPMENT:
        hospital = open_hospital(number)
        scores = {}
        for name, cases in (("test", hospital.test), ("enriched", hospital.enriched)):
            images = [study.images[0] for study in cases.studies]
            scores[name] = ((seen(backbone, images) - mean_) / spread @ weight.T + bias).numpy()
        each = {}
        for column, finding in enumerate(RARE):
            own, more = scores["test"][:, column], scores["enriched"][:, column]
            has = hospital.test.severities[:, finding] > 0
            others = hospital.enriched.severities[:, finding] > 0
            each[RARE_NAMES[finding]] = auroc(np.concatenate([own[has], more[others]]), own[~has])
        found[number] = mean(each.values())
        shown = {name: round(value, 3) for name, value in each.items()}
        print(
            json.dumps(
                {
                    "hospital": number,
                    "probe": round(found[number], 4),
                    **shown,
                    "U": round(uniform.get(number, float("nan")), 4),
                }
            )
        )
    room = [found[number] - uniform[number] for number in found if number in uniform]
    if room:
        print(f"room above U: {mean(room):.4f} over {len(room)} hospitals, want 0.04")


if __name__ == "__main__":
    main()
