"""`make hard`: every trial, a table, and a file of results; exit 1 where anything was wrong."""

import argparse
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("models", "helpers"))]


def main() -> int:
    from tests.hard.all_trials import TRIALS

    names = [trial.name for trial in TRIALS]
    parser = argparse.ArgumentParser(prog="python tests/hard", description=__doc__)
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"of: {', '.join(names)}")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--short", action="store_true", help="as few attempts as the tests make")
    parser.add_argument("--out", type=Path, default=None, help="write the outcome here, as JSON")
    asked = parser.parse_args()
    unknown = sorted(set(asked.trials) - set(names))
    if unknown:
        parser.error(f"no trial is named {unknown[0]}; there are {', '.join(names)}")
    seed = random.SystemRandom().randrange(2**31) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    rows = []
    for trial in TRIALS:
        if asked.trials and trial.name not in asked.trials:
            continue
        folder = Path(tempfile.mkdtemp(prefix=f"dive-hard-{trial.name}-"))
        began = time.monotonic()
        outcome = trial.run(trial.short if asked.short else trial.full, seed, folder)
        seconds = round(time.monotonic() - began, 1)
        rows.append(
            {
                "trial": trial.name,
                "tried": outcome.tried,
                "faults": len(outcome.faults),
                "seconds": seconds,
                "figures": outcome.figures,
            }
        )
        more = ", ".join(f"{name} {value}" for name, value in outcome.figures.items())
        print(
            f"{trial.name:<12} {outcome.tried:>6} tried  {len(outcome.faults):>3} faults"
            f"  {seconds:>7.1f} s  {more}",
            flush=True,
        )
        for fault in outcome.faults:
            print(f"    {fault}")
        if outcome.faults:
            print(f"    what was written is in {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    if asked.out is not None:
        found = {
            "what": f"make hard SEED={seed}: attempts, and what was wrong in them",
            "device": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d"),
            "rows": rows,
        }
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["faults"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
