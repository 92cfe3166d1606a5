"""How long `dive report` takes, and how large its page is, for studies made here.

    python tools/measure_page.py                                   200 studies, 3 methods
    python tools/measure_page.py --studies 2000 --methods 5 --film 512

Films are JPEGs of noise over a gradient, --film pixels high (a detector has about 3,000), each
study's its own file. Reports have 90 words of sentences that a radiologist might write. The command
runs as a process of its own, with 1,000 resamples; the time has its start in it.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dive.files.json_lines import write_jsonl

SENTENCES = (
    "Small left pleural effusion with adjacent atelectasis.", "No pneumothorax.",
    "The heart is mildly enlarged.", "The lungs are clear.", "Moderate pulmonary edema.",
    "Possible pneumonia in the right lower lobe.", "Large right pleural effusion.",
    "The bony structures are intact.", "Tiny apical pneumothorax on the left.",
    "The mediastinal contours are unremarkable and unchanged.",
    "An endotracheal tube terminates 4 cm above the carina.",
)  # fmt: skip
WORDS = 90


def report(rng: random.Random) -> str:
    chosen: list[str] = []
    while sum(len(sentence.split()) for sentence in chosen) < WORDS:
        chosen.append(rng.choice(SENTENCES))
    return " ".join(chosen)


def film(path: Path, height: int, seed: int) -> None:
    width = height * 5 // 6
    rng = np.random.default_rng(seed)
    light = np.linspace(40, 180, width)[None, :] * np.linspace(0.6, 1.2, height)[:, None]
    noise = rng.normal(0, 6, (height, width))
    Image.fromarray(np.clip(light + noise, 0, 255).astype(np.uint8)).save(path, quality=90)


def make(folder: Path, studies: int, methods: int, height: int) -> list[str]:
    """The files; returns the command's arguments."""
    rng = random.Random(0)
    ids = [f"study-{number:05d}" for number in range(studies)]
    for number, name in enumerate(ids):
        film(folder / f"{name}.jpg", height, number)
    write_jsonl(
        folder / "test.jsonl",
        [
            {"id": name, "patient": f"p{number // 3}", "images": [f"{name}.jpg"],
             "findings": report(rng)}
            for number, name in enumerate(ids)
        ],
    )  # fmt: skip
    arguments = ["--references", str(folder / "test.jsonl"), "--out", str(folder / "page.html")]
    for method in range(methods):
        path = folder / f"method-{method}.jsonl"
        records = [
            {"id": name, "report": report(rng), "finish_reason": "eos", "prompt_tokens": 600}
            for name in ids
        ]
        write_jsonl(path, records)
        arguments += ["--predictions", str(path)]
    return arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--methods", type=int, default=3)
    parser.add_argument("--film", type=int, default=3000, help="pixels of a film's height")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dive-page-") as name:
        arguments = make(Path(name), given.studies, given.methods, given.film)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dive", "report", *arguments], check=True)
        seconds = time.perf_counter() - start
        size = (Path(name) / "page.html").stat().st_size / 1e6
    print(
        f"{given.studies} studies, {given.methods} methods, films of {given.film} pixels: "
        f"{seconds:.1f} s, {size:.1f} MB"
    )


if __name__ == "__main__":
    main()
