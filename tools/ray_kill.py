"""Kill -9 of `dive generate --ray` at random points; what is resumed must be what nobody disturbed.

    python tools/ray_kill.py --kills 20 --seed 1 --out benchmarks/results/cpu-ray-kill.json

A tiny model and drawn films; two actors in a session of Ray's own on this machine, so that the kill
takes the driver of Ray as well. Half of the kills come at a random instant, half when a random
number of reports is written. Each run is killed up to three times before it is left to finish, and
then compared with a run without Ray: everything but the seconds. Processes that killed drivers
leave are waited for at the end; those still there are ended by their number, and counted.

It needs the environment of `make test-vllm`.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HELPERS = [ROOT, ROOT / "tests" / "models", ROOT / "tests" / "helpers"]
COUNT = 24
IN_A_ROW = 3
PATIENCE = 60.0  # seconds for the processes of a killed driver to end
LONGEST = 600.0  # seconds of a run


def command(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "dive", "generate", "--backbone", str(folder / "model"), "--studies",
        str(folder / "studies" / "studies.jsonl"), "--out", str(out), "--device", "cpu",
        "--max-new-tokens", "24", "--batch-size", "2", *more,
    ]  # fmt: skip


def start(folder: Path, out: Path) -> subprocess.Popen:
    """A run over Ray, in a session of its own so that no signal of Ray's meets this process."""
    environment = {
        **os.environ,
        "PYTHONPATH": ":".join(map(str, HELPERS)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(folder / "ray"),
        # a busy machine: Ray would give up, and its workers wait for all others
        "RAY_raylet_start_wait_time_s": "300",
        "RAY_worker_niceness": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            command(folder, out, "--ray", "--address", "local", "--actors", "2"),
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def parents() -> Iterator[tuple[int, int, int]]:
    """(process, its parent, when it began) of everything that runs here."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                yield int(path.name), int(fields[1]), int(fields[19])


def descendants(pid: int) -> dict[int, int]:
    """The processes below `pid`, with when each began: a number is given again one day."""
    children: dict[int, list[tuple[int, int]]] = {}
    for one, parent, began in parents():
        children.setdefault(parent, []).append((one, began))
    found: dict[int, int] = {}
    waiting = [pid]
    while waiting:
        for one, began in children.get(waiting.pop(), []):
            found[one] = began
            waiting.append(one)
    return found


def end_all(known: dict[int, int]) -> int:
    """Wait for these processes to end; returns how many had to be ended."""

    def left() -> list[int]:
        now = {one: began for one, _, began in parents()}
        return [one for one, began in known.items() if now.get(one) == began]

    ends = time.monotonic() + PATIENCE
    while left() and time.monotonic() < ends:
        time.sleep(0.2)
    staying = left()
    for one in staying:
        os.kill(one, signal.SIGKILL)
    return len(staying)


def kill_when(process: subprocess.Popen, reached: Callable[[], bool]) -> tuple[bool, dict]:
    """Kill -9 when something is reached: whether it still ran, and the processes it had begun."""
    ends = time.monotonic() + LONGEST
    while process.poll() is None and not reached():
        if time.monotonic() > ends:
            break
        time.sleep(0.001)
    known = descendants(process.pid)
    running = process.poll() is None
    process.kill()
    process.wait()
    return running, known


def records(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in one.items() if name != "seconds"} for one in found]


def written(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def trial(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kills until there were so many; returns what came of it."""
    from tiny import save_studies, save_tiny_llava

    save_tiny_llava(folder / "model")
    save_studies(folder / "studies", COUNT)
    (folder / "ray").mkdir()
    subprocess.run(command(folder, folder / "wanted.jsonl"), check=True, env={
        **os.environ, "PYTHONPATH": ":".join(map(str, HELPERS)),
    })  # fmt: skip
    wanted = records(folder / "wanted.jsonl")
    draw = random.Random(seed)
    began = time.monotonic()
    if start(folder, folder / "undisturbed.jsonl").wait(LONGEST) != 0:
        raise RuntimeError((folder / "log").read_text()[-2000:])
    usual = time.monotonic() - began
    faults = [] if records(folder / "undisturbed.jsonl") == wanted else ["undisturbed: differs"]
    tried = run = with_rows = not_begun = 0
    orphans: dict[int, int] = {}
    rows_at_kill = []
    while tried < kills:
        out = folder / f"{run}.jsonl"
        partial = folder / f"{run}.jsonl.partial"
        for _ in range(draw.randint(1, IN_A_ROW)):
            begins = time.monotonic()
            process = start(folder, out)
            if draw.random() < 0.5:
                at = time.monotonic() + draw.uniform(0, usual)
                killed, left = kill_when(process, lambda at=at: time.monotonic() > at)
            else:
                count = draw.randint(min(written(partial) + 1, COUNT - 1), COUNT - 1)
                killed, left = kill_when(
                    process,
                    lambda count=count, partial=partial: written(partial) >= count,
                )
            orphans |= left
            not_begun += not killed and process.returncode != 0
            if not killed and process.returncode == 0:  # the machine is less busy than it was
                usual = min(usual, time.monotonic() - begins)
            if killed:
                tried += 1
                rows_at_kill.append(written(partial))
                with_rows += rows_at_kill[-1] > 0
                print(f"kill {tried}: run {run}, {rows_at_kill[-1]} reports written", flush=True)
            if out.exists() or tried >= kills:
                break
        status = 0
        while not out.exists() and not_begun < kills:
            status = start(folder, out).wait(LONGEST)
            if status == 0 or written(partial) > 0:
                break
            not_begun += 1
        if status != 0 or not out.exists() or records(out) != wanted:
            faults.append(f"seed {seed}, run {run}: exit {status}, {out} differs")
        run += 1
    left_behind = end_all(orphans)
    return {
        "trial": "generate --ray", "tried": tried, "faults": len(faults), "faulty": faults,
        "seconds": round(time.monotonic() - began, 1), "seed": seed,
        "figures": {
            "runs": run, "killed with reports written": with_rows, "studies": COUNT,
            "processes that had to be ended": left_behind,
            "starts that failed by themselves": not_begun,
        },
        "reports written at each kill": rows_at_kill,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--out", type=Path, default=None, help="write the outcome here, as JSON")
    asked = parser.parse_args()
    sys.path[:0] = list(map(str, HELPERS))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import ray
    import torch
    import transformers

    seed = random.SystemRandom().randrange(2**31) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="ray-kill-"))
    found = trial(asked.kills, seed, folder)
    faulty = found.pop("faulty")
    print("\n".join([json.dumps(found), *faulty]), flush=True)
    if faulty:
        print(f"what was written is in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    if asked.out is not None:
        record = {
            "what": f"tools/ray_kill.py --kills {asked.kills}: kill -9 of the driver at random "
            "points, after which its session of Ray ends by itself; two actors, no adapter; "
            "resumed by the same command",
            "device": f"{platform.machine()}, {os.cpu_count()} cores, other work beside it",
            "python": platform.python_version(),
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "ray": ray.__version__,
            },
            "date": time.strftime("%Y-%m-%d"),
            "rows": [found],
        }
        asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
