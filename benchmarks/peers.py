"""Other ways to compute the loss, each as it is and on rows that the caller has gathered.

Every peer is a function that takes a `Problem` and returns a loss to call, or raises `Unavailable`
with the reason, which goes into the results: none is left out in silence. Weights are 0 or 1 here,
so that peers without weights per token do the same work by leaving targets out.
"""

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import TOY, default_device, short_name, version, write
from dive import ops, reference

PACKAGES = ("liger-kernel", "cut-cross-entropy", "quack-kernels", "nvidia-cutlass-dsl")
IGNORED = -100
KD_WEIGHT = 0.5
# a peer that does not leave the hidden states' gradient closer than this to the reference's, as a
# share of it, computes something else
TOLERANCE = 0.05


class Unavailable(Exception):
    """Why a peer cannot run here."""


@dataclass(frozen=True)
class Problem:
    """N rows of which some count; `teacher` asks for distillation too."""

    hidden: Tensor  # [N, D], requires a gradient
    head: Tensor  # [V, D], frozen
    targets: Tensor  # [N]
    weights: Tensor  # [N], 0 or 1
    rows: Tensor  # [M], those of weight 1
    teacher: Tensor | None = None  # [N, D]

    @classmethod
    def random(
        cls,
        tokens: int,
        width: int,
        vocabulary: int,
        live: int,
        dtype: torch.dtype,
        device: torch.device,
        distils: bool = False,
    ) -> "Problem":
        torch.manual_seed(0)
        on: dict[str, Any] = {"device": device}
        rows = torch.randperm(tokens, **on)[:live].sort().values
        return cls(
            hidden=torch.randn(tokens, width, **on).to(dtype).requires_grad_(),
            head=(torch.randn(vocabulary, width, **on) / width**0.5).to(dtype),
            targets=torch.randint(vocabulary, (tokens,), **on),
            weights=torch.zeros(tokens, **on).index_fill_(0, rows, 1.0),
            rows=rows,
            teacher=torch.randn(tokens, width, **on).to(dtype) if distils else None,
        )

    def gathered(self) -> "Problem":
        """The live rows alone."""
        return replace(
            self,
            hidden=self.hidden.detach()[self.rows].requires_grad_(),
            targets=self.targets[self.rows],
            weights=self.weights[self.rows],
            rows=torch.arange(len(self.rows), device=self.rows.device),
            teacher=None if self.teacher is None else self.teacher[self.rows],
        )

    def gradient(self, loss: Callable[[], Tensor]) -> Tensor:
        """Of the live rows, by one call of `loss`."""
        loss().backward()
        gradient, self.hidden.grad = self.hidden.grad, None
        assert gradient is not None
        return gradient[self.rows]

    @property
    def left_out(self) -> Tensor:
        """Targets with the dead rows marked, for peers that know no weights."""
        return torch.where(self.weights > 0, self.targets, IGNORED)


Loss = Callable[[], Tensor]


def distilling(p: Problem) -> dict[str, Any]:
    return {} if p.teacher is None else {"teacher_hidden": p.teacher, "kd_weight": KD_WEIGHT}


def dive(p: Problem) -> Loss:
    given = (p.hidden, p.head, p.targets, p.weights)
    more = distilling(p)
    if p.hidden.is_cuda:
        more["rows"] = p.rows  # as the collator gives them: no host sync
    return lambda: ops.decisive_cross_entropy(*given, **more).loss


def reference_eager(p: Problem) -> Loss:
    given, more = (p.hidden, p.head, p.targets, p.weights), distilling(p)
    return lambda: reference.decisive_cross_entropy(*given, **more).loss


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.compile of it; at toy size its tracing alone."""
    return torch.compile(function, backend="eager" if TOY else "inductor", dynamic=False)


def reference_compiled(p: Problem) -> Loss:
    more = distilling(p)

    def loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return reference.decisive_cross_entropy(hidden, head, targets, weights, **more).loss

    function = compiled(loss)
    return lambda: function(p.hidden, p.head, p.targets, p.weights)


def torch_core(reduction: str, chunked: bool) -> Callable[[Problem], Loss]:
    """F.linear_cross_entropy, in one piece or by its own chunks."""

    def make(p: Problem) -> Loss:
        _no_teacher(p)
        if not hasattr(F, "linear_cross_entropy"):
            raise Unavailable(f"torch {torch.__version__} has no F.linear_cross_entropy")
        options = torch.nn.LinearCrossEntropyOptions() if chunked else None
        left_out = p.left_out

        def mean() -> Tensor:
            return F.linear_cross_entropy(p.hidden, p.head, left_out, options=options)

        def none() -> Tensor:
            rows = F.linear_cross_entropy(
                p.hidden, p.head, p.targets, reduction="none", options=options
            )
            return (rows * p.weights).sum() / p.weights.sum()

        return mean if reduction == "mean" else none

    return make


def liger(p: Problem) -> Loss:
    """Its fused linear cross entropy; with a teacher, its fused JSD at beta 0 (KL) beside it."""
    module = _triton_module("liger_kernel.transformers.functional", "liger-kernel", p)
    left_out = p.left_out

    def cross_entropy() -> Tensor:
        return module.liger_fused_linear_cross_entropy(p.hidden, p.head, left_out)

    if p.teacher is None:
        return cross_entropy

    def both() -> Tensor:
        kl = module.liger_fused_linear_jsd(
            p.hidden, p.head, p.teacher, p.head, shift_labels=left_out, jsd_beta=0.0
        )
        return cross_entropy() + KD_WEIGHT * kl

    return both


def liger_none(p: Problem) -> Loss:
    _no_teacher(p)
    module = _triton_module("liger_kernel.transformers.functional", "liger-kernel", p)

    def loss() -> Tensor:
        rows = module.liger_fused_linear_cross_entropy(
            p.hidden, p.head, p.targets, reduction="none"
        )
        return (rows * p.weights).sum() / p.weights.sum()

    return loss


def apple(p: Problem) -> Loss:
    _no_teacher(p)
    module = _triton_module("cut_cross_entropy", "cut-cross-entropy", p)
    left_out = p.left_out
    return lambda: module.linear_cross_entropy(p.hidden, p.head, left_out)


def quack(p: Problem) -> Loss:
    """Chunks of 4096 rows, its default; without it the module computes all logits."""
    _no_teacher(p)
    module = _triton_module("quack.linear_cross_entropy", "quack-kernels", p)
    if len(p.targets) % 8:
        raise Unavailable("wants a multiple of 8 rows")
    left_out = p.left_out
    return lambda: module.chunked_linear_cross_entropy(p.hidden, p.head, left_out)


PEERS: dict[str, Callable[[Problem], Loss]] = {
    "reference": reference_eager,
    "reference, compiled": reference_compiled,
    "torch core, mean": torch_core("mean", chunked=False),
    "torch core, none": torch_core("none", chunked=False),
    "torch core, mean, chunked": torch_core("mean", chunked=True),
    "torch core, none, chunked": torch_core("none", chunked=True),
    "Liger": liger,
    "Liger, none": liger_none,
    "cut-cross-entropy": apple,
    "quack": quack,
}
GATHERED = " on live rows"


def losses(p: Problem) -> tuple[dict[str, tuple[Problem, Loss]], dict[str, str]]:
    """What runs here: the operator and every peer, each with its problem; and why others do not.

    A peer is called once with its backward here, and its gradient compared with the reference's.
    """
    problems = {"": p}
    if len(p.rows) < len(p.targets):
        problems[GATHERED] = p.gathered()
    truth = p.gradient(reference_eager(p)).float()
    found: dict[str, tuple[Problem, Loss]] = {}
    why: dict[str, str] = {}
    for name, make in {"dive": dive, **PEERS}.items():
        for suffix, problem in problems.items():
            if name == "dive" and suffix:
                continue
            try:
                loss = make(problem)
                off = (problem.gradient(loss).float() - truth).norm() / truth.norm()
            except Unavailable as reason:
                why[name] = str(reason)
                break
            except Exception as error:  # a peer's own: out of memory, no such device ...
                text = " ".join(str(error).split())
                why[name + suffix] = f"{type(error).__name__}: {text}"[:300]
                continue
            if not off <= TOLERANCE:
                why[name + suffix] = f"its gradient is {off:.0%} off the reference's"
                continue
            found[name + suffix] = (problem, loss)
    if "dive" not in found:
        raise RuntimeError(f"decisive_cross_entropy: {why['dive']}")
    return found, why


def _no_teacher(p: Problem) -> None:
    if p.teacher is not None:
        raise Unavailable("has no distillation over a shared head")


def _triton_module(name: str, package: str, p: Problem) -> ModuleType:
    if version(package) is None:
        raise Unavailable(f"{package} is not installed")
    if not p.hidden.is_cuda:
        raise Unavailable("runs on a GPU only")
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise Unavailable(f"{package} {version(package)} cannot be imported: {error}") from error


def main() -> None:
    """<device>-peers.json: what is installed, what runs, and how far its gradient is off."""
    parser = argparse.ArgumentParser(description="Which peers are there, and do they agree?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default_device().type)
    parser.add_argument("--again", action="store_true", help="has no effect: it is always run")
    device = torch.device(parser.parse_args().device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    cases = []
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
