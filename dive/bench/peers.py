"""Other implementations of the loss, each as it is and on rows that the caller has gathered.

Every peer is a function that takes a `Problem` and returns a loss to call, or raises `Unavailable`
with the reason, which is recorded. Weights are 0 or 1 here, so that peers without weights per token
do the same work by ignoring targets.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dive import ops, reference
from dive.bench.case import reseed
from dive.bench.machine import version
from dive.bench.results import reason_of

IGNORED = -100
KD_WEIGHT = 0.5
# largest distance of a peer's gradient of the hidden states from the reference's, as a share of it;
# a peer beyond it computes something else
TOLERANCE = 0.05


class Unavailable(Exception):
    """A peer cannot run here, for the reason stated."""


@dataclass(frozen=True)
class Problem:
    """N rows of which some are live; with a `teacher` for distillation, too."""

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
        """Draws normal states, and weights of 1 at `live` random rows."""
        reseed(0, device)
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
        """Returns the problem of the live rows alone."""
        return replace(
            self,
            hidden=self.hidden.detach()[self.rows].requires_grad_(),
            targets=self.targets[self.rows],
            weights=self.weights[self.rows],
            rows=torch.arange(len(self.rows), device=self.rows.device),
            teacher=None if self.teacher is None else self.teacher[self.rows],
        )

    def first(self, rows: int) -> "Problem":
        """Returns the first rows of a problem whose rows are all live."""
        return replace(
            self,
            hidden=self.hidden.detach()[:rows].requires_grad_(),
            targets=self.targets[:rows],
            weights=self.weights[:rows],
            rows=self.rows[:rows],
            teacher=None if self.teacher is None else self.teacher[:rows],
        )

    def result(self, loss: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Returns loss and gradient [N, D] of one call of `loss`."""
        value = loss()
        value.backward()
        gradient, self.hidden.grad = self.hidden.grad, None
        assert gradient is not None
        return value.detach(), gradient

    def gradient(self, loss: Callable[[], Tensor]) -> Tensor:
        """Returns the gradient of the live rows by one call of `loss`."""
        return self.result(loss)[1][self.rows]

    @property
    def left_out(self) -> Tensor:
        """Targets with dead rows ignored, for peers without weights."""
        return torch.where(self.weights > 0, self.targets, IGNORED)


Loss = Callable[[], Tensor]
Peer = Callable[[Problem], Loss]


def distilling(p: Problem) -> dict[str, Any]:
    """Returns the operator's arguments for the teacher, if there is one."""
    return {} if p.teacher is None else {"teacher_hidden": p.teacher, "kd_weight": KD_WEIGHT}


def dive(p: Problem) -> Loss:
    """`dive.ops.decisive_cross_entropy`."""
    given = (p.hidden, p.head, p.targets, p.weights)
    more = distilling(p)
    if p.hidden.is_cuda:
        more["rows"] = p.rows  # as the collator passes them: no host sync
    return lambda: ops.decisive_cross_entropy(*given, **more).loss


def reference_eager(p: Problem) -> Loss:
    """`dive.reference`, in plain PyTorch."""
    given, more = (p.hidden, p.head, p.targets, p.weights), distilling(p)
    return lambda: reference.decisive_cross_entropy(*given, **more).loss


def torch_core(reduction: str, chunked: bool) -> Peer:
    """F.linear_cross_entropy, in one piece or in its own chunks."""

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
    """Liger's fused linear cross entropy; with a teacher, plus its fused JSD at beta 0 (KL)."""
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
    """Liger with a loss per row, weighted outside."""
    _no_teacher(p)
    module = _triton_module("liger_kernel.transformers.functional", "liger-kernel", p)

    def loss() -> Tensor:
        rows = module.liger_fused_linear_cross_entropy(
            p.hidden, p.head, p.targets, reduction="none"
        )
        return (rows * p.weights).sum() / p.weights.sum()

    return loss


def apple(p: Problem) -> Loss:
    """cut-cross-entropy."""
    _no_teacher(p)
    module = _triton_module("cut_cross_entropy", "cut-cross-entropy", p)
    left_out = p.left_out
    return lambda: module.linear_cross_entropy(p.hidden, p.head, left_out)


def quack(p: Problem) -> Loss:
    """quack in chunks of 4096 rows, its default; its other functions compute all logits."""
    _no_teacher(p)
    module = _triton_module("quack.linear_cross_entropy", "quack-kernels", p)
    if len(p.targets) % 8:
        raise Unavailable("want a multiple of 8 rows")
    left_out = p.left_out
    return lambda: module.chunked_linear_cross_entropy(p.hidden, p.head, left_out)


# libraries that are fast on some device first, as there may be no time to try them all
LIBRARIES: dict[str, Peer] = {
    "torch core, mean": torch_core("mean", chunked=False),
    "torch core, none": torch_core("none", chunked=False),
    "Liger": liger,
    "Liger, none": liger_none,
    "cut-cross-entropy": apple,
    "quack": quack,
    "torch core, mean, chunked": torch_core("mean", chunked=True),
    "torch core, none, chunked": torch_core("none", chunked=True),
}
GATHERED = " on live rows"


def checked(make: Peer, p: Problem, truth: Tensor) -> Loss:
    """Returns the loss of a peer after one call with its backward; raises `Unavailable`.

    truth: float32 [M, D], the reference's gradient of the live rows.
    """
    try:
        loss = make(p)
        off = (p.gradient(loss).float() - truth).norm() / truth.norm()
    except Unavailable:
        raise
    except Exception as error:  # a peer's own: out of memory, no such device ...
        raise Unavailable(reason_of(error)) from error
    if not off <= TOLERANCE:
        raise Unavailable(f"its gradient is {off:.0%} off the reference's")
    return loss


def losses(
    p: Problem, peers: Mapping[str, Peer]
) -> tuple[dict[str, tuple[Problem, Loss]], dict[str, str]]:
    """Returns each peer that runs here with its problem, and why the others do not run.

    A peer is called once with its backward, and its gradient compared with the reference's.
    """
    problems = {"": p}
    if len(p.rows) < len(p.targets):
        problems[GATHERED] = p.gathered()
    truth = p.gradient(reference_eager(p)).float()
    found: dict[str, tuple[Problem, Loss]] = {}
    why: dict[str, str] = {}
    for name, make in peers.items():
        for suffix, problem in problems.items():
            if make is dive and suffix:  # it gathers them itself
                continue
            try:
                found[name + suffix] = (problem, checked(make, problem, truth))
            except Unavailable as reason:
                if why.get(name) != str(reason):
                    why[name + suffix] = str(reason)
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
