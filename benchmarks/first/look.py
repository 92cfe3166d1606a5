"""What the parts of the first contact share: the device, times, and where time goes."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import timing
from benchmarks.first.steps import NotHere
from benchmarks.timing import TOY

Calls = dict[str, Callable[[], object]]


def gpu() -> torch.device:
    """The GPU; at toy size the CPU. NotHere where there is none."""
    if TOY:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NotHere("no GPU is visible to torch")
    return torch.device("cuda", 0)


def medians(calls: Calls, rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """Milliseconds a call of those that run, in turns, and of the others why not."""
    device = gpu()
    good, why = timing.working(calls)
    taken = timing.interleaved(good, 2 if TOY else rounds, device)
    clock = timing.clock(device)
    return {name: 1e3 * one[clock] for name, one in taken.items()}, why


def compared(calls: Calls, rounds: int, floor: str, share: float = 1.0) -> dict[str, Any]:
    """Medians beside a floor, which is `share` times what the call of that name takes."""
    taken, why = medians(calls, rounds)
    least = share * taken.get(floor, float("nan"))
    shares = {name: round(least / one, 3) for name, one in taken.items() if name != floor}
    said = [f"{name} {taken[name]:.3f} ms {part:.0%}" for name, part in shares.items()]
    said += [f"{name}: {reason}" for name, reason in why.items()]
    return {
        "summary": f"floor {least:.3f} ms; " + ", ".join(said),
        "floor_ms": least,
        "ms": taken,
        "share_of_floor": shares,
        "not_run": why,
    }


def kernels(call: Callable[[], object], calls: int = 3) -> dict[str, Any]:
    """Where the GPU's time of one call goes, kernel by kernel."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = gpu().type == "cuda"
    call()
    _wait()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(calls):
            call()
        _wait()
    kind = "device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(seen.key_averages(), key=lambda event: -getattr(event, kind))[:14]
    found = {
        event.key[:90]: {
            "us": round(getattr(event, kind) / calls, 1),
            "calls": round(event.count / calls, 1),
        }
        for event in rows
    }
    said = [f"{name[:40]} {one['us']:.0f} us" for name, one in list(found.items())[:4]]
    return {"summary": "; ".join(said), "kernels": found}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
