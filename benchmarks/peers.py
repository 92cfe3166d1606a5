"""All peers of the loss (dive/bench/peers.py), and the compiled reference."""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import TOY, default_device, short_name, version, write
from dive import reference
from dive.bench.peers import (
    GATHERED,
    LIBRARIES,
    TOLERANCE,
    Loss,
    Peer,
    Problem,
    Unavailable,
    distilling,
    dive,
    reference_eager,
)
from dive.bench.peers import losses as losses_of

__all__ = ["GATHERED", "PEERS", "Loss", "Problem", "Unavailable", "compiled", "dive", "losses"]

PACKAGES = ("liger-kernel", "cut-cross-entropy", "quack-kernels", "nvidia-cutlass-dsl")


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns the function under torch.compile; at toy size only traced."""
    return torch.compile(function, backend="eager" if TOY else "inductor", dynamic=False)


def reference_compiled(p: Problem) -> Loss:
    more = distilling(p)

    def loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return reference.decisive_cross_entropy(hidden, head, targets, weights, **more).loss

    function = compiled(loss)
    return lambda: function(p.hidden, p.head, p.targets, p.weights)


PEERS: dict[str, Peer] = {
    "reference": reference_eager,
    "reference, compiled": reference_compiled,
    **LIBRARIES,
}


def losses(p: Problem) -> tuple[dict[str, tuple[Problem, Loss]], dict[str, str]]:
    """Returns the operator and every peer that runs here, and why others do not."""
    found, why = losses_of(p, {"dive": dive, **PEERS})
    if "dive" not in found:
        raise RuntimeError(f"decisive_cross_entropy: {why['dive']}")
    return found, why


def main() -> None:
    """Writes <device>-peers.json: what is installed, what runs, and why others do not."""
    parser = argparse.ArgumentParser(description="Which peers are there, and do they agree?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default_device().type)
    device = torch.device(parser.parse_args().device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    cases: list[dict[str, Any]] = []
    for distils in (False, True):
        p = Problem.random(*((32, 16, 128, 8) if TOY else (512, 512, 8192, 128)), dtype, device,
                           distils)  # fmt: skip
        found, why = losses(p)
        cases.append({"case": "CE + KD" if distils else "CE", "runs": list(found), "not_run": why})
        print(cases[-1], flush=True)
    result = {
        "what": f"peers of the loss; one runs if its gradient is within {TOLERANCE:.0%}",
        "complete": True,
        "packages": {name: version(name) for name in PACKAGES},
        "cases": cases,
    }
    print(write(f"{short_name(device)}-peers", result, device))


if __name__ == "__main__":
    main()
