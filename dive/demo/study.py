"""The study behind README's table: `python -m dive.demo.study`.

Every method on four hospitals that nothing was chosen on, with two seeds each. Results go into
benchmarks/results/demo-study.json, one record a hospital, seed and method, as they come: a run that
was interrupted goes on where it stopped. About an hour on one core.

    python -m dive.demo.study                   what is missing of the study
    python -m dive.demo.study --development     the choices, on two other hospitals
    python -m dive.demo.study --table           the table from the file
    python -m dive.demo.study --readme FILE     the same, between README's two markers
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dive.data.io import write_text
from dive.errors import DiveError

from . import methods as m
from .methods import Method

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "demo-study.json"
TEST_HOSPITALS = (1, 2, 3, 4)
DEVELOPMENT_HOSPITALS = (901, 902)
SEEDS = (0, 1)
STEPS = 100
TRAIN, TEST = 128, 160
SCORES = ("bleu4", "rouge_l", "style_f1", "concept_f1", "terminated", "length_ratio")


def _but(method: Method, name: str, **changes: Any) -> Method:
    return replace(method, name=name, config=(method.config or {}) | changes)


# One change to the full method each.
NO_TEACHER = replace(_but(m.DIVE, "DIVE, no teacher", kd_weight=0.0), teacher=False)
NO_TEACHER_UNIFORM = replace(
    _but(m.UNIFORM, "DIVE, no teacher, uniform weights", kd_weight=0.0), teacher=False
)
FIXED_CE = replace(
    _but(m.FIXED_UNIFORM, "fixed vectors, uniform cross entropy", kd_weight=0.0), teacher=False
)
RANK_ONE = _but(m.DIVE, "DIVE, rank 1", rank=1)
NO_MODIFIERS = _but(m.DIVE, "DIVE, no modifiers", modifiers=False)
ALL_MENTIONS = _but(m.DIVE, "DIVE, negated mentions too", polarity="all")
NO_END = _but(m.DIVE, "DIVE, no end-token weight", eos_weight=1.0)
STUDY_METHODS = (
    *m.DEMO_METHODS, NO_TEACHER, NO_TEACHER_UNIFORM, FIXED_CE, RANK_ONE, NO_MODIFIERS,
    ALL_MENTIONS, NO_END,
)  # fmt: skip

# What the two development hospitals were asked: one change at a time.
DEVELOPMENT_METHODS = (
    *(_but(m.DIVE, f"DIVE, rate {rate:g}", learning_rate=rate) for rate in (6e-3, 2.5e-2, 5e-2)),
    *(
        _but(m.DIVE, f"DIVE, weights {w:g}", pathology_weight=w, eos_weight=w)
        for w in (1.0, 2.5, 4.5)
    ),
    *(_but(m.DIVE, f"DIVE, KL {w:g}", kd_weight=w) for w in (0.2, 1.0)),
    NO_TEACHER,
    NO_MODIFIERS,
    *(
        _but(m.FIXED_UNIFORM, f"fixed, rate {rate:g}", learning_rate=rate)
        for rate in (0.05, 0.1, 0.2)
    ),
    *(_but(m.LIVE, f"LIVE, rate {rate:g}", learning_rate=rate) for rate in (2e-2, 5e-2, 1e-1)),
)


def load(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["records"] if path.exists() else []


def save(path: Path, records: Sequence[dict[str, Any]]) -> None:
    body = ",\n".join("  " + json.dumps(record) for record in records)
    about = (
        "python -m dive.demo.study; percentages 0 to 100; one record a hospital, seed and method"
    )
    write_text(path, f'{{\n "about": {json.dumps(about)},\n "records": [\n{body}\n ]\n}}\n')


def surroundings() -> dict[str, Any]:
    import torch
    import transformers

    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "commit": commit,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def run(
    methods: Iterable[Method],
    hospitals: Sequence[int],
    seeds: Sequence[int],
    group: str,
    path: Path,
    *,
    steps: int = STEPS,
    train: int = TRAIN,
    test: int = TEST,
) -> None:
    """Run what `path` does not have yet; prompting without training has no seed and is run once."""
    import dive

    backbone = dive.load_backbone(m.BACKBONE, dtype="float32", device="cpu")
    methods, facts = list(methods), surroundings()
    for seed in seeds:
        for number in hospitals:
            where = m.open_hospital(number, train, test)
            for method in methods:
                own_seed = None if method.config is None else seed
                key = {"hospital": number, "seed": own_seed, "group": group, "method": method.name}
                records = load(path)
                if any(all(r[k] == v for k, v in key.items()) for r in records):
                    continue
                start = time.perf_counter()
                row = m.run_method(method, backbone, where, seed=seed, steps=steps).row
                record = (
                    key
                    | row
                    | {"seconds": round(time.perf_counter() - start, 1)}
                    | {"config": method.config, "steps": steps if method.config else 0}
                    | {"train": train, "test": test}
                    | facts
                )
                save(path, [*load(path), record])
                print(json.dumps({k: record[k] for k in (*key, *SCORES, "seconds")}), flush=True)


def table(records: Sequence[dict[str, Any]], group: str = "test") -> str:
    """Markdown: mean and standard deviation over hospitals and seeds."""
    records = [record for record in records if record["group"] == group]
    heads = ("BLEU-4", "ROUGE-L", "style F1", "concept F1", "ended %", "length")
    lines = [
        "| method | runs | " + " | ".join(heads) + " |",
        "| --- | --- |" + " ---: |" * len(heads),
    ]
    for name in dict.fromkeys(record["method"] for record in records):
        rows = [record for record in records if record["method"] == name]
        values = []
        for key in SCORES:
            numbers = [row[key] for row in rows]
            digits = 2 if key == "length_ratio" else 1
            text = f"{mean(numbers):.{digits}f}"
            if key != "length_ratio" and len(numbers) > 1:
                text += f" ± {stdev(numbers):.{digits}f}"
            values.append(text)
        label = f"**{name}**" if name == m.DIVE.name else name
        lines.append(f"| {label} | {len(rows)} | " + " | ".join(values) + " |")
    return "\n".join(lines)


MARKERS = ("<!-- study table: made by python -m dive.demo.study --readme -->", "<!-- end -->")


def into_readme(text: str, made: str) -> str:
    """A README with the table between its two markers."""
    before, _, rest = text.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not end:
        raise DiveError(f"the README has no {MARKERS[0]} ... {MARKERS[1]}")
    return f"{before}{MARKERS[0]}\n{made}\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dive.demo.study",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--development", action="store_true", help="the two development hospitals")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    parser.add_argument("--readme", type=Path, help="write the table into this file, run nothing")
    parser.add_argument("--hospitals", type=int, nargs="+", help="default: all of the group")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--methods", nargs="+", help="only these, by name")
    parser.add_argument("--train", type=int, default=TRAIN, help="training studies a hospital")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    group = "development" if args.development else "test"
    if args.train != TRAIN:
        group += f", {args.train} training studies"
    if args.table:
        print(table(load(args.out), group))
        return
    if args.readme:
        text = args.readme.read_text(encoding="utf-8")
        write_text(args.readme, into_readme(text, table(load(args.out))))
        return
    chosen: tuple[Method, ...] = DEVELOPMENT_METHODS if args.development else STUDY_METHODS
    if args.methods:
        chosen = tuple(method for method in chosen if method.name in args.methods)
    hospitals = args.hospitals or (DEVELOPMENT_HOSPITALS if args.development else TEST_HOSPITALS)
    run(chosen, hospitals, args.seeds, group, args.out, train=args.train)
    print(table(load(args.out), group))


if __name__ == "__main__":
    main()
