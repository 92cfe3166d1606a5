"""Shared by the parts of the first contact: the device, times, and profiles."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import timing
from benchmarks.first.steps import NotHere
from benchmarks.timing import TOY

Calls = dict[str, Callable[[], object]]


def gpu() -> torch.device:
    """Returns the GPU, at toy size the CPU; raises NotHere if there is none."""
    if TOY:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NotHere("no GPU is visible to torch")
    return torch.device("cuda", 0)


def medians(calls: Calls, rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """Returns ms per call of the calls that run, in turns, and why others do not."""
    device = gpu()
    good, why = timing.working(calls)
    taken = timing.interleaved(good, 2 if TOY else rounds, device)
    clock = timing.clock(device)
    return {name: 1e3 * one[clock] for name, one in taken.items()}, why


def compared(calls: Calls, rounds: int, floor: str, share: float = 1.0) -> dict[str, Any]:
    """Returns medians and their floor, `share` times the time of the call of that name."""
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
    """Profiles the GPU time of one call, kernel by kernel."""
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
