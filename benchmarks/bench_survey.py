"""Seconds from the start of a program to the first step of a distillation, on many full-size films.

    python benchmarks/bench_survey.py [--studies 120000] [--backbone qwen2.5-vl ...] [--workers N]
                                                                      results/cpu-survey.json

Draws a few grey JPEG films of usual sizes (one of them rotated by its EXIF tag), links every
study's image to one of them in a temporary folder, and distils one step from all:
`dive.data.read_studies` and `dive.distill` with the default preset (a teacher with 4
demonstrations), a checkpoint folder, on a backbone whose processor has its family's real sizes and
whose weights are tiny and random: the time of the model is not measured. Each runs in its own
process, imports included.

Prints one JSON line per backbone; for the full number of studies a results file is written. Seconds
are wall-clock time from the start of the program; `first_step_s` is the start of the student's
first forward, after decoding and teacher. `cpu_s` is CPU time of all processes together, to the end
of the step: more reliable on a busy machine. There are few films, so reading from a disk or a
network is not included.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SENTENCES = [
    "The heart is normal in size",
    "There is a small right pleural effusion",
    "Mild cardiomegaly",
    "No pneumothorax",
    "Patchy opacity in the left lower lobe may be atelectasis or pneumonia",
    "Calcified granuloma in the left upper lobe",
    "Streaky bibasilar opacities, likely atelectasis",
    "The mediastinal contours are within normal limits",
    "Lung volumes are low",
    "Right internal jugular line ends in the low superior vena cava",
    "No focal consolidation",
    "Degenerative changes of the thoracic spine",
    "Pulmonary vascular congestion without edema",
]
STUDIES = 120_000
SIZES = ((2544, 3056), (3056, 2544), (2022, 2022), (2320, 2828))


def draw_films(folder: Path, count: int = 4) -> list[Path]:
    """Draws JPEG films of about 2 MB, which is the size that detector noise leads to."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    films = []
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        lungs = np.exp(-(((np.abs(x) - 0.45) / 0.3) ** 2) - (y / 0.7) ** 2)
        film = 190 - 140 * lungs + 30 * np.cos(9 * y + number) * (np.abs(x) < 0.9)
        film += noise.normal(0, 6, film.shape)
        image = Image.fromarray(np.clip(film, 0, 255).astype(np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        films.append(folder / f"film-{number}.jpg")
        image.save(films[-1], quality=90, exif=exif)
    return films


def write_studies(folder: Path, count: int) -> Path:
    """Writes `count` studies of a third as many patients, each with a linked film and a report."""
    draw = random.Random(0)
    films = draw_films(folder)
    path = folder / "studies.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            name = f"files/{number // 1000}/{number}.jpg"
            if number % 1000 == 0:
                (folder / name).parent.mkdir(parents=True)
            try:
                os.link(films[number % len(films)], folder / name)
            except OSError:  # the number of hard links of a file is limited
                os.symlink(films[number % len(films)], folder / name)
            row = {"id": f"s{number}", "patient": f"p{number // 3}", "images": [name]}
            row["indication"] = f"{draw.randint(20, 95)} year old with cough, {number}."
            row["findings"] = ". ".join(draw.choices(SENTENCES, k=8)) + "."
            file.write(json.dumps(row) + "\n")
    return path


def save_backbone(name: str, folder: Path) -> Path:
    """Saves a tiny random model of a family, with a processor of real sizes."""
    sys.path.insert(0, str(HERE.parent / "tests" / "models"))
    import tiny

    if name == "llava":
        return tiny.save_tiny_llava(folder)
    tiny.save_tiny_qwen25_vl(folder)
    path = folder / "processor_config.json"
    files = json.loads(path.read_text())
    for part in ("image_processor", "video_processor"):
        files[part]["size"] = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
    path.write_text(json.dumps(files))
    return folder


def measure(backbone: str, studies: str, workers: int | None) -> dict[str, Any]:
    start = time.perf_counter()
    import torch

    import dive
    from dive.data import read_studies
    from dive.training import loop, preparation

    torch.set_num_threads(1)
    found: dict[str, float] = {}

    def done(name: str) -> None:
        found.setdefault(name, round(time.perf_counter() - start, 1))

    forward, survey, lengths = (
        loop.Student.forward, preparation.survey, preparation.Teacher.prompt_lengths,
    )  # fmt: skip

    def first(*args: Any, **more: Any) -> Any:
        done("first_step_s")
        return forward(*args, **more)

    def surveyed(*args: Any, **more: Any) -> Any:
        done("survey_begins_s")
        result = survey(*args, **more)
        done("surveyed_s")
        return result

    def measured(*args: Any, **more: Any) -> Any:
        result = lengths(*args, **more)
        done("teacher_measured_s")
        return result

    changed: Any = (loop.Student, preparation, preparation.Teacher)
    changed[0].forward, changed[1].survey, changed[2].prompt_lengths = first, surveyed, measured
    model = dive.load_backbone(backbone, device="cpu")
    rows = read_studies(studies)
    done("studies_read_s")
    config = dive.DistillConfig(steps=1, workers=workers)
    with tempfile.TemporaryDirectory() as folder:
        adapter = dive.distill(model, rows, config=config, output_dir=folder, progress=False)
    done("done_s")
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return found | {
        "cpu_s": round(sum(one.ru_utime + one.ru_stime for one in uses), 1),
        "peak_mib": round(uses[0].ru_maxrss / 1024),
        "studies": adapter.metadata["distillation"]["studies"],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--studies", type=int, default=STUDIES)
    options.add_argument("--backbone", nargs="*", default=["qwen2.5-vl", "llava"])
    options.add_argument("--workers", type=int)
    options.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure, given.workers)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        studies = write_studies(Path(folder), given.studies)
        for name in given.backbone:
            model = save_backbone(name, Path(folder) / name)
            command = [sys.executable, __file__, "--measure", str(model), str(studies)]
            command += [] if given.workers is None else ["--workers", str(given.workers)]
            load = os.getloadavg()[0]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append({"backbone": name, **json.loads(answer), "load_1min": round(load, 1)})
            print(json.dumps(rows[-1]), flush=True)
    if given.studies == STUDIES:
        sys.path.insert(0, str(HERE.parent))
        from benchmarks import timing

        what = (
            f"dive.distill to its first step on {STUDIES:,} studies of a full-size JPEG film each"
        )
        print(timing.write("cpu-survey", {"what": what, "results": rows}))


if __name__ == "__main__":
    main()
