"""Runs what is missing of the study of decisive weights; docs/decisive-study.md is its protocol.

    python -m experiments.decisive_weights.runner                      the confirmatory runs
    python -m experiments.decisive_weights.runner --part pilot         on development hospitals
    python -m experiments.decisive_weights.runner --hospitals 2001 ... some of them

Records are appended to benchmarks/results/decisive-weights.jsonl (those of the development
hospitals to decisive-weights-pilot.jsonl), one line per run: an interrupted study continues where
it stopped, and several processes may run at the same time, each with some of the hospitals. A run
that diverges or fails has a record, too; a failed one is run again.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dive.cli.options import quiet_libraries
from dive.demo.methods import BACKBONE, MAX_NEW_TOKENS, PROMPT
from dive.errors import DiveError, checks
from dive.errors.visible import visible
from dive.files.atomic import check_file
from experiments.compare_methods import append, load, surroundings
from experiments.decisive_weights.arms import ARMS, settings
from experiments.decisive_weights.pilot import PILOT
from experiments.decisive_weights.protocol import ALL_RUNS, PARTS, STEPS
from experiments.decisive_weights.records import CONTROLS, FILE

FILES = {"confirmatory": FILE, "pilot": PILOT, "rates": PILOT}
WRITTEN = 200  # test studies whose reports are written
COUNTED = 240  # slots, by score, whose hits are recorded
# The best of each arm by mean rare AUROC on hospitals 2901 and 2902, part "rates".
RATES = {
    "U": 5e-2, "P": 2.5e-2, "P8": 5e-2, "P1": 5e-2, "E": 5e-2, "D": 5e-2, "S": 5e-2, "V": 5e-2,
    "R": 5e-2, "FU": 1e-1, "FP": 2e-1, "C": 5e-2,
}  # fmt: skip
STATE_RATES = (1.2e-2, 2.5e-2, 5e-2)
FIXED_RATES = (1e-1, 2e-1, 4e-1)


@dataclass(frozen=True)
class Run:
    """One run: an arm under its conditions. written: whether reports are written, too."""

    part: str
    world: str
    hospital: int
    arm: str
    steps: int
    learning_rate: float
    written: bool = False

    @property
    def key(self) -> dict[str, Any]:
        names = ("part", "world", "hospital", "arm", "steps", "learning_rate")
        return {name: getattr(self, name) for name in names} | {"seed": 0}


def runs(part: str, hospital: int) -> Iterator[Run]:
    """The runs of one hospital, those of arm U first (the controls T and TC are made from them)."""
    if part == "rates":
        for name, arm in ARMS.items():
            for rate in FIXED_RATES if arm.fixed else STATE_RATES:
                yield Run(part, "tail", hospital, name, STEPS, rate)
        return
    if part == "pilot":
        for name in ("U", "P8"):
            yield Run(part, "tail", hospital, name, STEPS, 2.5e-2)  # before rates were chosen
        return
    for world, name, steps in ALL_RUNS:
        main = world == "tail" and steps == STEPS
        yield Run(part, world, hospital, name, steps, RATES[name], written=main)


def hospitals_of(part: str) -> tuple[int, ...]:
    return PARTS[part][:2] if part == "rates" else PARTS[part]


def perform(part: str, hospitals: Sequence[int], arms: Sequence[str], path: Path) -> None:
    """Runs what `path` lacks of a part, in the given hospitals and arms."""
    import dive
    from experiments.decisive_weights.scores import Scorer
    from experiments.decisive_weights.world import open_hospital

    backbone = dive.load_backbone(BACKBONE, dtype="float32", device="cpu")
    facts = surroundings()
    for number in hospitals:
        scorers: dict[str, Scorer] = {}
        for run in runs(part, number):
            known = load(path)
            if run.arm not in arms or any(
                run.key.items() <= one.items() and one["status"] != "failed" for one in known
            ):
                continue
            if run.world not in scorers:
                scorers[run.world] = Scorer(backbone, open_hospital(number, run.world))
            start = time.perf_counter()
            found = _measured(run, backbone, scorers[run.world])
            if run.arm in CONTROLS.values() and found["status"] == "ok":
                found |= _threshold_control(run, found, known)
            found["seconds"] = round(time.perf_counter() - start, 1)
            append(path, run.key | found | facts)
            shown = ("status", "rare_auroc", "end_auroc", "slot_nll", "slot_positives", "seconds")
            print(
                json.dumps(run.key | {name: found[name] for name in shown if name in found}),
                flush=True,
            )


def _measured(run: Run, backbone: Any, scorer: Any) -> dict[str, Any]:
    """Returns the record of a run without its key: its measures, or why there are none."""
    import dive
    from dive.training.loss_watch import NonFiniteLoss
    from experiments.decisive_weights import scores

    hospital = scorer.hospital
    train = hospital.train.studies
    sizes = {
        "train": len(train),
        "test": len(hospital.test.studies),
        "enriched": len(hospital.enriched.studies),
    }
    with tempfile.TemporaryDirectory() as folder:
        config = settings(
            ARMS[run.arm], backbone, train, run.hospital, hospital.demonstrations, Path(folder)
        )
        weights = {k: v for k, v in config.items() if k not in ("preset", "rank", "decisive")}
        try:
            adapter = dive.distill(
                backbone,
                train,
                demonstrations=hospital.demonstrations if ARMS[run.arm].needs_teacher else None,
                config=config
                | {
                    "steps": run.steps,
                    "batch_size": 8,
                    "seed": 0,
                    "cache_images": True,
                    "workers": 0,
                }
                | {"learning_rate": run.learning_rate},
                prompt=PROMPT,
                progress=False,
            )
        except NonFiniteLoss as error:
            return {"status": "diverged", "reason": str(error), "weights": weights} | sizes
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return {"status": "failed", "reason": reason, "weights": weights} | sizes
    found = scorer.score(adapter)
    order = np.argsort(-found.pop("slot_scores"), kind="stable")
    hits = np.cumsum(found.pop("slot_labels")[order])
    metadata = adapter.metadata["distillation"]
    record = {
        "status": "ok",
        **found,
        "hits_by_count": hits[:COUNTED].tolist(),
        "decision_share": metadata.get("decision_share"),
        "visual_share": metadata.get("visual_share"),
        "weights": weights,
    }
    if run.written:
        reports = dive.generate(
            backbone,
            hospital.test.studies[:WRITTEN],
            prompt=PROMPT,
            adapter=adapter,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=32,
            progress=False,
        )
        measures = scores.written(reports, hospital)
        record |= {name: round(value, 3) for name, value in measures.items()}
    return record | sizes


def _threshold_control(
    run: Run, found: dict[str, Any], known: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the control of a run: U's slots, as many of the highest stated as the run states."""
    count = found["slot_positives"]
    same = {**run.key, "arm": "U"}
    same.pop("learning_rate")
    for one in known:
        if same.items() <= one.items() and one["status"] == "ok":
            hits = [0, *one["hits_by_count"]]
            if count < len(hits):
                return {"slot_positives_T": count, "slot_hits_T": hits[count]}
    return {}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.decisive_weights.runner",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--part", default="confirmatory", help=f"one of {', '.join(FILES)}")
    parser.add_argument("--hospitals", type=int, nargs="+", help="default: all of the part")
    parser.add_argument("--arms", nargs="+", help="default: all of the part")
    parser.add_argument("--out", metavar="FILE", help="records; default: those of the tree")
    args = parser.parse_args(argv)
    if args.part not in FILES:
        raise DiveError(f"part is {args.part!r}, want one of {', '.join(FILES)}")
    own = hospitals_of(args.part)
    for number in args.hospitals or ():
        if number not in own:
            raise DiveError(f"hospital is {number}, want one of part {args.part}: {own}")
    out = FILES[args.part] if args.out is None else checks.path("--out", args.out)
    check_file(out)  # before anything runs
    for name in args.arms or ():
        if name not in ARMS:
            raise DiveError(f"arm is {name!r}, want one of {', '.join(ARMS)}")
    perform(args.part, args.hospitals or own, args.arms or tuple(ARMS), out)


if __name__ == "__main__":
    quiet_libraries()
    try:
        main()
    except DiveError as error:
        sys.exit(visible(f"error: {error}"))
