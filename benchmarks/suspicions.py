"""Suspected bottlenecks of the kernels, each as a comparison that one call on a GPU decides.

    python -m benchmarks.suspicions [NAME ...] [--seconds 240] [--out FILE]

Every way is first compared with dive.reference (with transformers where it decodes), then the ways
are timed in turns. Each suspicion is one JSON line, printed and appended to FILE; a table follows.
`keep A`: the first way, which is the default, is within 2% of the best or better; `take B`
names a way that is faster by at least 2%, by the whole 95% interval of the ratios of single rounds;
`undecided` is neither. DIVE_BENCH_TOY=1 runs all of it on a CPU, under Triton's interpreter, and
names what that cannot run.

A way is a launch configuration (kernels/launch_table.py), a chunk size, a graph, or the engine's
`tile_plan`. Its compilation for sm_90 is described with it: tests/kernels/test_kernels_compiled.py
checks Triton's programs, `python tests/helpers/nvcc.py 90a` prints the registers of nvcc's.
"""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

TOY = os.environ.get("DIVE_BENCH_TOY") == "1"
if TOY:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import timing, tune  # noqa: E402
from dive import ops, reference  # noqa: E402
from dive.bench.case import off  # noqa: E402
from dive.bench.peers import Problem  # noqa: E402
from dive.bench.timing import (  # noqa: E402
    Call,
    gpu_seconds,
    interval,
    repeats_for,
    turns,
    wall_seconds,
)

ROUNDS = 1 if TOY else 15
WORTH_RATIO = 0.98  # a ratio below it is worth a change
FAR = 0.02  # a distance from the reference above it is an error; bfloat16 stays below 1%
DTYPE = torch.bfloat16
UNIT = 64 if TOY else 1 << 20  # of chunk_bytes: toy chunks have a few rows
# tokens, width, vocabulary, live; tokens, width, rank
SIZES = (34, 16, 128, 34) if TOY else (4096, 4096, 128256, 4096)
STREAM = (8, 64, 4) if TOY else (16384, 4096, 16)
BATCH = 2 if TOY else 32
CONTEXT, STEPS = (6, 4) if TOY else (128, 64)


class NotHere(Exception):
    """This machine cannot decide the comparison, for the reason stated."""


@dataclass
class Trial:
    """Ways to compute one thing, the default first."""

    compares: str
    ways: dict[str, Call]
    changes: dict[str, str] = field(default_factory=dict)  # way -> its description
    off: dict[str, float] = field(default_factory=dict)  # distance from the reference
    seconds: Callable[[Call], Callable[[], float]] | None = None  # None: events on the GPU
    choice: bool = True  # whether there is a default to keep or change


LaunchOptions = dict[str, Any]
_now: list[Any] = [None]  # the options that are in the table


def taking(table_options: dict[str, LaunchOptions], call: Call, width: int, rank: int = 0) -> Call:
    """Returns the call with these launch options, by kernel; others stay as they were."""

    def run() -> object:
        if _now[0] is not table_options:
            forget()
            for kernel, options in table_options.items():
                key = tune.key_of(kernel, DTYPE, rank, width)
                tune.set_options(key, default_options(kernel, width, rank) | options)
            _now[0] = table_options
        return call()

    return run


def default_options(kernel: str, width: int, rank: int) -> LaunchOptions:
    _, capability, _, padded, bucket = tune.key_of(kernel, DTYPE, rank, width)
    return dict(tune.launch_table._DEFAULTS[kernel](capability, False, padded, bucket))


def forget() -> None:
    """Restores the table of the tree."""
    tune.tuned.TUNED.clear()
    tune.tuned.TUNED.update(TREE)
    tune.launch_table._configured.cache_clear()
    _now[0] = None


TREE = dict(tune.tuned.TUNED)


# --- the loss ----------------------------------------------------------------------------------


def loss_ways(compares: str, ways: dict[str, tuple[int, LaunchOptions, str]]) -> Trial:
    """Compares ways: chunk_bytes in MiB, launch options of the row pass, their description."""
    p = Problem.random(*SIZES, DTYPE, tune.DEVICE)
    given = (p.hidden, p.head, p.targets, p.weights)

    def gradient(chunk: int) -> Tensor:
        p.hidden.grad = None
        ops.decisive_cross_entropy(*given, rows=p.rows, chunk_bytes=chunk * UNIT).loss.backward()
        assert p.hidden.grad is not None
        return p.hidden.grad

    reference.decisive_cross_entropy(*given).loss.backward()
    assert p.hidden.grad is not None
    want = p.hidden.grad.clone()
    trial = Trial(compares, {})
    for name, (chunk, options, what) in ways.items():
        table_options = {"cross_entropy_rows": options} if options else {}
        trial.ways[name] = taking(table_options, partial(gradient, chunk), SIZES[2])
        trial.changes[name] = what
        trial.off[name] = off(trial.ways[name](), want)  # type: ignore[arg-type]
    return trial


def loss_chunks() -> Trial:
    """Chunks of 256 MiB have 64 tiles of the second product for 132 multiprocessors."""
    sizes = (256, 128, 512, 1024, 2048)
    return loss_ways(
        "chunk_bytes of the loss, forward and backward",
        {f"{one} MiB": (one, {}, f"{one * UNIT} bytes of logits at a time") for one in sizes},
    )


def loss_overlap() -> Trial:
    """The row pass waits for the product, and the next product for it."""
    two: LaunchOptions = {"buffers": 2}
    return loss_ways(
        "row pass of a chunk overlapping the product of the next, on a second stream",
        {
            "256 MiB": (256, {}, "one buffer: the default"),
            "1024 MiB": (1024, {}, "one buffer"),
            "256 MiB, two buffers": (256, two, "of half the bytes each"),
            "512 MiB, two buffers": (512, two, "of half the bytes each"),
            "1024 MiB, two buffers": (1024, two, "of half the bytes each"),
        },
    )


def row_pass() -> Trial:
    """The sweeps have one load in flight per thread: load, barrier, store."""
    call, width = tune.loss_call("cross_entropy_rows", DTYPE, SIZES[2]), SIZES[2]
    small = {"BLOCK": 2048, "num_warps": 8}
    ways: dict[str, tuple[LaunchOptions, str]] = {
        "A": ({}, "no cp.async; programs of 16 warps"),
        "2 stages": ({"STAGES": 2}, "cp.async"),
        "3 stages": (
            {"STAGES": 3},
            "cp.async",
        ),
        "3 stages, 8 warps": (
            {"STAGES": 3, **small},
            "cp.async; programs of 8 warps",
        ),
        "8 warps": (small, "no cp.async"),
    }
    checked = loss_ways("", {n: (256, options, "") for n, (options, _) in ways.items()})
    table_options = {
        n: {"cross_entropy_rows": options} if options else {} for n, (options, _) in ways.items()
    }
    return Trial(
        f"prefetch in the row pass, {tune.CHUNK} rows of logits alone",
        {name: taking(table_options[name], call, width) for name in ways},
        {name: what for name, (_, what) in ways.items()},
        checked.off,
    )


# --- steering ----------------------------------------------------------------------------------


def stream(dtype: torch.dtype, tokens: int = STREAM[0]) -> list[Tensor]:
    """Returns h, and the parameters in the given dtype."""
    _, width, rank = STREAM
    torch.manual_seed(0)
    h = torch.randn(tokens, width, device=tune.DEVICE).to(DTYPE)
    shapes = ((rank, width), (rank,), (width, rank), (width,), ())
    drawn = [torch.randn(shape, device=tune.DEVICE).mul_(0.1).to(dtype) for shape in shapes]
    return [h, *drawn]


def sweep() -> Trial:
    """The loads of h in the second sweep wait for each other."""
    given, (_, width, rank) = stream(DTYPE), STREAM
    want = reference.steer(*given)
    trial = Trial("prefetch in the second sweep of steer forward, each as a graph", {})
    for stages, what in (
        (None, "no cp.async of h"),
        (2, "h by cp.async"),
        (3, "h by cp.async"),
        (4, "h by cp.async"),
    ):
        name = "A" if stages is None else f"{stages} stages"
        table_options = {} if stages is None else {"steer_forward": {"STAGES": stages}}
        call = taking(table_options, lambda: ops.steer(*given), width, rank)
        trial.off[name] = off(call(), want)  # type: ignore[arg-type]
        trial.ways[name], trial.changes[name] = timing.graphed(call, tune.DEVICE), what
    return trial


def casts() -> Trial:
    """A float32 adapter is rounded twice per forward and twice per backward."""
    given, (_, width, rank) = stream(torch.float32), STREAM
    h, down, _bias, up, *_ = given
    upstream = torch.randn_like(h)
    rest = ("silu", False)

    def both(saved: bool) -> tuple[Tensor, ...]:
        narrow = (down.to(DTYPE), up.to(DTYPE)) if saved else None
        out, pre, rstd = tune.steer.forward(*given, None, *rest, 1e-6, True, narrow)
        back = tune.steer_backward.backward(upstream, *given, None, pre, rstd, *rest, narrow=narrow)
        return out, *back

    wanted = [one.clone().requires_grad_() for one in given]
    result = reference.steer(*wanted)
    want = [result.detach(), *torch.autograd.grad(result, wanted, upstream)]
    wide: dict[str, LaunchOptions] = {"steer_forward": {"casts": 0}, "steer_backward": {"casts": 0}}
    trial = Trial("cost of a float32 adapter, forward and backward, each as a graph", {})
    for name, table_options, saved, what in (
        ("A", {}, False, "copies in the dtype of h in either pass: four small kernels"),
        ("saved", {}, True, "the backward pass reuses the forward's copies: two"),
        ("as they are", wide, False, "every program reads float32 and rounds it: none"),
    ):
        call = taking(table_options, partial(both, saved), width, rank)
        found: Any = call()
        trial.off[name] = max(off(one, other) for one, other in zip(found, want, strict=True))
        trial.ways[name], trial.changes[name] = timing.graphed(call, tune.DEVICE), what
    return trial


def host_time(tokens: int) -> Trial:
    """With few tokens a call of steer takes longer on the host than on the GPU."""
    given = [one.requires_grad_() for one in stream(torch.float32, tokens)]
    upstream = torch.randn_like(given[0])

    def forward() -> Tensor:
        with torch.no_grad():
            return ops.steer(*given)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(ops.steer(*given), given, upstream)

    want = reference.steer(*given).detach()
    trial = Trial(f"steer, {tokens} tokens: calls, and replays of their graph", {}, choice=False)
    trial.off["forward"] = off(forward(), want)
    for name, call in (("forward", forward), ("forward+backward", both)):
        trial.ways[name], trial.ways[f"{name}, graph"] = call, timing.graphed(call, tune.DEVICE)
    return trial


# --- decoding ----------------------------------------------------------------------------------


@contextmanager
def sessions_with_plan(plan: str) -> Iterator[None]:
    """Makes new sessions divide their products by this tile plan; a CPU has no tiles."""
    from dive.decode.spec import DecoderSpec

    engine_arguments = DecoderSpec.engine_arguments

    def facts_with_plan(self: Any, positions: int) -> dict[str, Any]:
        more = {"tile_plan": plan} if tune.DEVICE.type == "cuda" else {}
        return engine_arguments(self, positions) | more

    with mock.patch.object(DecoderSpec, "engine_arguments", facts_with_plan):
        yield


def tile_plans() -> Trial:
    """Batch 32: with 254 registers per thread a multiprocessor holds one thread block; gate and up
    have 112 of them for 132 multiprocessors, and query, key and value 1.45 waves."""
    from dive.bench.decoders import build
    from dive.decode import DecodeSession

    on = tune.DEVICE
    model = build("Llama-3-8B", DTYPE, on, context=CONTEXT + STEPS + 64, toy=TOY)
    ids = torch.randint(5, model.config.vocab_size, (BATCH, CONTEXT), device=on)
    given = {"attention_mask": torch.ones_like(ids), "do_sample": False}
    theirs = model.generate(ids, **given, max_new_tokens=2)[:, CONTEXT:]
    trial = Trial(f"division of the tile products, a step of {BATCH} sequences", {})
    for plan, what in {
        "bytes": "8 warps, 254 registers, only bytes in flight decide how many share a row",
        "waves": "the same kernel, by waves: gate and up 896 blocks of 8 warps per row",
        "small": "the same kernel in blocks of 4 warps, two per multiprocessor",
        "small_short": "4 warps, 168 to 174 registers, half the prefetch, three of them",
    }.items():
        with sessions_with_plan(plan):
            session = DecodeSession(model)
            chosen = session.engine_choice(**given, max_new_tokens=STEPS)
            if chosen.engine != "dive._C":
                raise NotHere(f"the engine does not run: {chosen.reason}")
            own = session.generate(ids, **given, max_new_tokens=2)[:, CONTEXT:]
        # the first token is of the prefill; with random weights a few tokens are ties
        same = own[:, 0] == theirs[:, 0]
        trial.off[plan] = float((own[same, 1] != theirs[same, 1]).float().mean()) * FAR / 0.4
        trial.ways[plan] = partial(session.generate, ids, **given, max_new_tokens=STEPS)
        trial.changes[plan] = what
    once = partial(session.generate, ids, **given, max_new_tokens=1)
    prompt = min(wall_seconds(once, on) for _ in range(3))

    def step(call: Call) -> Callable[[], float]:
        return lambda: (wall_seconds(call, on) - prompt) / (STEPS - 1)

    trial.seconds = step
    return trial


SUSPICIONS: dict[str, Callable[[], Trial]] = {
    "loss-chunks": loss_chunks,
    "loss-overlap": loss_overlap,
    "row-pass": row_pass,
    "steer-sweep": sweep,
    "steer-casts": casts,
    "steer-host": partial(host_time, STREAM[0]),
    "steer-host-2048": partial(host_time, 8 if TOY else 2048),
    "tile-plans": tile_plans,
}


def verdict(ratios: dict[str, list[float]]) -> str:
    """Returns the verdict. ratios: way -> median and interval of its time over the first way's."""
    best = min(ratios, key=lambda name: ratios[name][0])
    _, low, high = ratios[best]
    if high < WORTH_RATIO:
        return f"take {best}"
    return "keep A" if low >= WORTH_RATIO else "undecided"


def measure(name: str, until: float) -> dict[str, Any]:
    """Returns the result of a suspicion."""
    started = time.monotonic()
    trial = SUSPICIONS[name]()
    found: dict[str, Any] = {"suspicion": name, "compares": trial.compares}
    wrong = {way: far for way, far in trial.off.items() if not far <= FAR}
    found |= {"changes": trial.changes, "off": {w: round(x, 5) for w, x in trial.off.items()}}
    ways = {way: call for way, call in trial.ways.items() if way not in wrong}
    if wrong:
        found["wrong"] = f"further than {FAR:.0%} from the reference: {', '.join(wrong)}"
    first = next(iter(trial.ways))
    if first in wrong or len(ways) < 2:
        return found | {"verdict": "wrong"}
    found["prepared"] = round(time.monotonic() - started, 1)
    taken = turns(watches(trial, ways), ROUNDS, until=until)
    found["us"] = {w: [round(1e6 * x, 1) for x in interval(v)] for w, v in taken.items()}
    found["rounds"] = len(taken[first])
    found["ratio"] = {
        way: [
            round(x, 4) for x in interval([a / b for a, b in zip(own, taken[first], strict=True)])
        ]
        for way, own in taken.items()
        if way != first
    }
    if TOY:
        found["verdict"] = f"ran {len(ways)} ways; toy sizes decide nothing"
    else:
        found["verdict"] = verdict(found["ratio"]) if trial.choice else "for information"
    return found


def watches(trial: Trial, ways: dict[str, Call]) -> dict[str, Callable[[], float]]:
    if trial.seconds is not None:
        return {name: trial.seconds(call) for name, call in ways.items()}
    if tune.DEVICE.type != "cuda":
        return {name: partial(wall_seconds, call, tune.DEVICE) for name, call in ways.items()}
    return {name: partial(gpu_seconds, call, repeats_for(call, 50)) for name, call in ways.items()}


def table_lines(found: dict[str, Any]) -> str:
    """Returns the lines of a result in the table."""
    head = f"{found['suspicion']:<16} {found.get('verdict') or 'not run: ' + found['not run']}"
    lines = [head + (f" ({found['wrong']})" if "wrong" in found else "")]
    for way, (median, low, high) in found.get("us", {}).items():
        ratio = found["ratio"].get(way)
        beside = "" if ratio is None else f"  {ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]"
        lines.append(f"  {way:<24} {median:>10.1f} us [{low:.1f}, {high:.1f}]{beside}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SUSPICIONS))
    parser.add_argument("--seconds", type=float, default=240, help="for all of them together")
    parser.add_argument("--out", type=Path, help="file for the JSON lines")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in SUSPICIONS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: want some of {', '.join(SUSPICIONS)}")
    if tune.DEVICE.type == "cuda" and not torch.cuda.is_available():
        print("needs a CUDA device; DIVE_BENCH_TOY=1 runs it without one")
        return 1
    if TOY:
        from dive.ops import triton_path

        triton_path.install("CPU")
    names = options.names or list(SUSPICIONS)
    end, results = time.monotonic() + options.seconds, []
    for position, name in enumerate(names):
        now = time.monotonic()
        if now > end:
            found: dict[str, Any] = {"suspicion": name, "not run": "no time was left"}
        else:
            try:
                found = measure(name, now + (end - now) / (len(names) - position))
            except Exception as error:
                text = " ".join(str(error).split())
                found = {"suspicion": name, "not run": f"{type(error).__name__}: {text}"[:400]}
        forget()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        results.append(found)
        line = json.dumps(found | timing.machine(tune.DEVICE))
        print(line, flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    print("\n".join(table_lines(found) for found in results))
    return 1 if any(found.get("verdict") == "wrong" for found in results) else 0


if __name__ == "__main__":
    sys.exit(main())
