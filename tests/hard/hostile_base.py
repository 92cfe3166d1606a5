"""What hostile files are made from: a tiny backbone, an adapter, an image, reports; all good."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# makes something hostile in an empty folder; what `dive` is called with to meet it
Maker = Callable[[random.Random, Path, "Base"], list[str]]


@dataclass(frozen=True)
class Base:
    backbone: Path
    adapter: Path
    image: Path
    reports: Path  # serves `evaluate` for predictions and references

    def generate(self, place: Path, *more: object, backbone: Path | None = None) -> list[str]:
        fixed = ["--backbone", backbone or self.backbone, "--out", place / "out.jsonl"]
        return [
            str(one)
            for one in ("generate", *more, *fixed, "--max-new-tokens", 2, "--device", "cpu")
        ]

    def copied_adapter(self, place: Path) -> Path:
        return Path(shutil.copytree(self.adapter, place / "adapter"))

    def copied_backbone(self, place: Path) -> Path:
        return Path(shutil.copytree(self.backbone, place / "backbone"))

    def with_adapter(self, place: Path, adapter: Path) -> list[str]:
        return self.generate(place, self.image, "--adapter", adapter)


def make_base(folder: Path) -> Base:
    import tiny
    import torch
    from PIL import Image

    import dive

    backbone = tiny.save_tiny_llava(folder / "backbone")
    torch.manual_seed(0)
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=2), dive.load_backbone(backbone))
    adapter.metadata |= {"prompt": "Describe the findings.", "target": "findings"}
    adapter.metadata["distillation"] = {"sources": ["mimic-cxr"], "config": {"preset": "dive"}}
    adapter.save_pretrained(folder / "adapter")
    Image.linear_gradient("L").save(folder / "film.png")
    row = {"id": "a", "images": ["film.png"], "findings": "Clear.", "report": "Clear."}
    (folder / "reports.jsonl").write_text(json.dumps(row) + "\n")
    return Base(backbone, folder / "adapter", folder / "film.png", folder / "reports.jsonl")
