"""The experiment behind README's table: every method on hospitals that no choice was made on.

Six hospitals that no run had used, three seeds each (one where training is four times as long), and
four parts that are published whatever their outcome. The choices (rates, weights) were made on two
other hospitals. docs/study.md has all of it, and when each decision was taken.

    python -m experiments.compare_methods                 what is missing of all parts
    python -m experiments.compare_methods --part main     of one
    python -m experiments.evidence --render               the pages, from records

Records are appended to benchmarks/results/demo-study.jsonl as they come, one line per hospital,
seed and method: an interrupted run continues where it stopped, and several processes may run at the
same time, each with some of the `--hospitals`. All parts took 3.2 hours on one core.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dive.cli.options import quiet_libraries
from dive.demo import methods as m
from dive.demo.methods import Method
from dive.errors import DiveError, checks
from dive.errors.visible import visible
from dive.files.atomic import append_line, check_file
from experiments import comparison_tables, demo_records, record_files

ROOT = Path(__file__).parents[1]
TEST_HOSPITALS = (11, 12, 13, 14, 15, 16)
DEVELOPMENT_HOSPITALS = (901, 902)
TEST = 160  # studies per hospital


def _but(method: Method, name: str, **changes: Any) -> Method:
    return replace(method, name=name, config=(method.config or {}) | changes)


# Each is one change to the full method.
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
OTHERS_IMAGES = replace(m.DIVE, name="DIVE, shown another patient's image", others_images=True)

# The comparisons on the development hospitals: one change at a time.
CHOICES = (
    *(_but(m.DIVE, f"DIVE, rate {rate:g}", learning_rate=rate) for rate in (6e-3, 2.5e-2, 5e-2)),
    *(
        _but(m.DIVE, f"DIVE, weights {w:g}", pathology_weight=w, eos_weight=w)
        for w in (1.0, 2.5, 4.5)
    ),
    *(_but(m.DIVE, f"DIVE, KL {w:g}", kd_weight=w) for w in (0.2, 1.0)),
    NO_TEACHER,
    NO_MODIFIERS,
    *(
        _but(m.FIXED_UNIFORM, f"fixed vectors, rate {rate:g}", learning_rate=rate)
        for rate in (0.05, 0.1, 0.2)
    ),
    *(_but(m.LIVE, f"LIVE, rate {rate:g}", learning_rate=rate) for rate in (2e-2, 5e-2, 1e-1)),
)


@dataclass(frozen=True)
class Part:
    """Some methods under one set of conditions."""

    methods: tuple[Method, ...]
    hospitals: tuple[int, ...] = TEST_HOSPITALS
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 100
    train: int = 128  # studies per hospital


PARTS = {
    "development": Part(CHOICES, DEVELOPMENT_HOSPITALS, seeds=(0, 1)),
    "main": Part(
        (
            *m.DEMO_METHODS, NO_TEACHER, NO_TEACHER_UNIFORM, FIXED_CE, RANK_ONE, NO_MODIFIERS,
            ALL_MENTIONS, NO_END, OTHERS_IMAGES,
        )
    ),
    "400 steps": Part((m.FIXED_UNIFORM, m.FIXED, m.UNIFORM, m.DIVE), seeds=(0,), steps=400),
    "16 studies": Part((NO_TEACHER_UNIFORM, NO_TEACHER, m.UNIFORM, m.DIVE), train=16),
}  # fmt: skip


def load(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in record_files.read(path)]


def append(path: Path, record: dict[str, Any]) -> None:
    append_line(path, json.dumps(record) + "\n")  # lines of two processes do not mix


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


def run(name: str, hospitals: Sequence[int], path: Path) -> None:
    """Runs what `path` lacks of a part; a method without training has no seed and runs once."""
    import dive

    part = PARTS[name]
    backbone = dive.load_backbone(m.BACKBONE, dtype="float32", device="cpu")
    facts = surroundings()
    for number in hospitals:
        where = m.open_hospital(number, part.train, TEST)
        for seed in part.seeds:
            for method in part.methods:
                trained = method.config is not None
                key = {
                    "part": name,
                    "hospital": number,
                    "seed": seed if trained else None,
                    "method": method.name,
                }
                if any(key.items() <= record.items() for record in load(path)):
                    continue
                start = time.perf_counter()
                record = m.run_method(method, backbone, where, seed=seed, steps=part.steps).record
                record = (
                    key
                    | record
                    | {"seconds": round(time.perf_counter() - start, 1)}
                    | {"config": method.config, "steps": part.steps if trained else 0}
                    | {"train": part.train, "test": TEST}
                    | facts
                )
                append(path, record)
                shown = (*key, *comparison_tables.SCORES, "seconds")
                print(json.dumps({k: record[k] for k in shown}), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare_methods",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--part", action="append", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--hospitals", type=int, nargs="+", help="default: all of the part")
    parser.add_argument("--out", metavar="FILE", help="records; default: those of the tree")
    args = parser.parse_args(argv)
    for name in args.part or ():
        if name not in PARTS:
            raise DiveError(f"part is {name!r}, want one of {', '.join(PARTS)}")
    out = demo_records.FILE if args.out is None else checks.path("--out", args.out)
    check_file(out)  # before anything runs
    for name in args.part or PARTS:
        own = PARTS[name].hospitals
        chosen = [number for number in own if args.hospitals is None or number in args.hospitals]
        if args.hospitals and args.part and not chosen:
            raise DiveError(f"none of the hospitals {args.hospitals} is of part {name}: {own}")
        run(name, chosen, out)


if __name__ == "__main__":
    quiet_libraries()
    try:
        main()
    except DiveError as error:
        sys.exit(visible(f"error: {error}"))
