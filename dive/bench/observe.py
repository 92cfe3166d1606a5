"""Observation of the code that runs, rather than of the code that was chosen."""

import sys
from collections.abc import Callable
from typing import Any

import torch

CodeName = tuple[str, str]  # module and function
# the PyTorch paths of the operators
_PYTORCH = {
    ("dive.ops.steering_torch", "forward"), ("dive.ops.steering_torch", "backward"),
    ("dive.ops.steering_grouped_torch", "steer"),
    ("dive.ops.cross_entropy_torch", "forward"), ("dive.ops.cross_entropy_torch", "backward"),
}  # fmt: skip


def functions_run(call: Callable[[], object]) -> set[CodeName]:
    """Returns the Python functions that run in one call, its backward included.

    A backward on a GPU runs on a thread of autograd, which is not profiled; here it does not.
    """
    seen: set[CodeName] = set()

    def note(frame: Any, event: str, _argument: Any) -> None:
        if event == "call":
            seen.add((frame.f_globals.get("__name__", ""), frame.f_code.co_name))

    before = sys.getprofile()
    with torch.autograd.set_multithreading_enabled(False):
        sys.setprofile(note)
        try:
            call()
        finally:
            sys.setprofile(before)
    return seen


def operator(call: Callable[[], object], device: torch.device) -> str:
    """Returns what computed the operator of `dive.ops` in this call.

    "triton", "cpu operator" ("pytorch operator" on a GPU), both joined by " + ", or "unknown".
    """
    seen = functions_run(call)
    found = []
    if any(module.startswith("triton.runtime") for module, _ in seen):
        found.append("triton")
    if seen & _PYTORCH:
        found.append("cpu operator" if device.type == "cpu" else "pytorch operator")
    return " + ".join(found) or "unknown"


class Forwards:
    """Counts the model's own forwards, which shows what generated the tokens of an answer.

    transformers computes each token of an answer by a forward; the engine takes over after the
    prefill.
    """

    def __init__(self, model: Any) -> None:
        self.count = 0
        self._handle = model.register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1

    def close(self) -> None:
        """Removes the hook."""
        self._handle.remove()


def decoder(forwards: int, calls: int, tokens: int) -> str:
    """Returns what generated `tokens` tokens in `calls` calls, each of more than one token."""
    if forwards == calls:
        return "dive._C"
    if forwards >= tokens:
        return "transformers"
    return f"transformers for {forwards - calls} of {tokens - calls} tokens, dive._C for the rest"
