"""Two ranks of a training, forked from one process that has imported all that they need.

`torch.distributed.run` starts every rank anew, which takes longer than a tiny training: the tests
of what happens between ranks start them here, and test_distillation.py and test_visual_training.py
train as users do. Here no rank ends another: each has to end by itself.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNT = 2
SECONDS = 240  # until ranks are taken to wait for each other for ever


class Ranks:
    """Runs scripts on two ranks, one script after another, from one process that it starts."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def run(self, script: Path, log: Path) -> list[int]:
        """Returns the exit status of each rank; what they print is in `log`.

        A negative one is of the signal that ended a rank which did not end in `SECONDS`.
        """
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps([str(script), str(log)]) + "\n")
        self.server.stdin.flush()
        codes: list[int] = json.loads(self.server.stdout.readline())
        return codes

    def close(self) -> None:
        """Ends the process, which ends when there is nothing more to read."""
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(60)


def serve() -> None:
    """Answers every line, a script and a file for its words, with the status of each rank."""
    import accelerate  # noqa: F401
    import transformers.trainer  # noqa: F401

    import dive.training.loop  # noqa: F401

    for line in sys.stdin:
        script, log = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = [os.fork() or run_rank(rank, port, script, log) for rank in range(COUNT)]
        print(json.dumps(statuses(pids)), flush=True)


def run_rank(rank: int, port: int, script: str, log: str) -> int:
    """Runs the script as a rank, in this process, and ends the process."""
    code = 1
    try:
        with open(log, "a") as file, open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
        os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(COUNT))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        runpy.run_path(script, run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def statuses(pids: list[int]) -> list[int]:
    """Returns how each of these processes ended; ends those that do not."""
    end = time.monotonic() + SECONDS
    found: dict[int, int] = {}
    while len(found) < len(pids):
        for pid in pids:
            if pid in found:
                continue
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                found[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [found[pid] for pid in pids]


if __name__ == "__main__":
    serve()
