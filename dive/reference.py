"""The operators in plain PyTorch: the oracle of tests and the baseline of benchmarks.

Same signatures and meaning as `dive.ops`; gradients by autograd; nothing is checked or fused.
float64 inputs are computed in float64, everything else accumulates in float32.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES = 3  # of response tokens: template, pathology, end of sequence


class DecisiveLoss(NamedTuple):
    """The results of `decisive_cross_entropy`. Only `loss` carries a gradient.

    Rows that are not live hold 0, and -1 in argmax. Everything but indices and counts is float32,
    or float64 for float64 inputs.
    """

    loss: Tensor  # [], or [N] with reduction="none"
    row_ce: Tensor  # [N] -log softmax(z)[target], without weight; 0 where a target is out of range
    row_kl: Tensor | None  # [N] temperature^2 KL(teacher || student), without weight; None: no KD
    lse: Tensor  # [N] logsumexp(z)
    target_logprob: Tensor  # [N] = -row_ce
    argmax: Tensor  # [N] int64, most likely token
    class_loss: Tensor | None  # [3] mean row_ce of the rows that have a weight; 0 where count is 0
    class_accuracy: Tensor | None  # [3] share of those rows whose argmax is the target
    class_count: Tensor | None  # [3] int64, how many they are; None without token_class
    # float64 [3]: code of the first bad value (0: none), its row, the value; see dive.ops.check
    status: Tensor | None = None


def _activation(x: Tensor, name: str) -> Tensor:
    if name == "silu":
        return F.silu(x)
    if name == "gelu":
        return F.gelu(x)
    return torch.tanh(x) if name == "tanh" else x


def steer(
    h: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    *,
    mask: Tensor | None = None,
    activation: str = "silu",
    norm_preserving: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """Returns h + scale * (up phi(down u + down_bias) + static), [..., D] in the dtype of h.

    u is h over its root mean square, phi one of silu, gelu (exact), tanh, identity. down [R, D],
    down_bias [R], up [D, R], static [D], scale []; R may be 0. With norm_preserving the result is
    scaled to the norm of h (by 1 where it is 0). mask bool [...]: where False h is unchanged.
    Operands of the two products are rounded to the dtype of h.
    """
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    x = h.to(wide).contiguous()  # one order of summation for the norms of x and of the result
    if mask is not None:  # masked rows must not reach a gradient either
        x = torch.where(mask[..., None], x, 0.0)
    mix = _mixing(x, down, down_bias, h.dtype, activation, eps)
    edit = mix @ up.to(h.dtype).to(wide).T + static.to(wide)
    out = x + scale.to(wide) * edit
    if norm_preserving:
        norm = torch.linalg.vector_norm(out, dim=-1, keepdim=True)
        old = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # without an edit both norms are the same number and their ratio is exactly 1
        out = torch.where(norm > 0, out * (old / torch.where(norm > 0, norm, 1.0)), out)
    out = out.to(h.dtype)
    return out if mask is None else torch.where(mask[..., None], out, h)


def mixing_weights(
    h: Tensor,
    down: Tensor,
    down_bias: Tensor,
    *,
    activation: str = "silu",
    eps: float = 1e-6,
) -> Tensor:
    """Returns phi(down u + down_bias) of `steer`, [..., R]: what the columns of up are mixed by.

    float32, or float64 for float64 h; rounded to the dtype of h, as `steer` rounds it.
    """
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    return _mixing(h.to(wide).contiguous(), down, down_bias, h.dtype, activation, eps)


def steer_grouped_(
    hidden: Tensor,
    residual: Tensor | None,
    adapters: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    static: Tensor,
    scale: Tensor,
    *,
    activation: str = "silu",
    norm_preserving: bool = False,
    eps: float = 1e-6,
) -> None:
    """Adds to hidden[t] what `steer` changes in hidden[t] + residual[t], token by token.

    hidden, residual [T, D]; adapters [T or more], of which one below 0 or from L on changes
    nothing; down [L, R, D], down_bias [L, R], up [L, D, R], static [L, D], scale [L]. The sum is
    rounded to the dtype of hidden as an operand of the product, and nowhere else.
    """
    dtype = hidden.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for t, which in enumerate(adapters[: hidden.shape[0]].tolist()):
        if not 0 <= which < down.shape[0]:
            continue
        old = hidden[t].to(wide)
        x = old if residual is None else old + residual[t].to(wide)
        rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        pre = rstd * (down[which].to(dtype).to(wide) @ x.to(dtype).to(wide))
        mix = _activation(pre + down_bias[which].to(wide), activation).to(dtype).to(wide)
        edit = up[which].to(dtype).to(wide) @ mix + static[which].to(wide)
        moved = x + scale[which].to(wide) * edit
        if norm_preserving:
            norm, before = torch.linalg.vector_norm(moved), torch.linalg.vector_norm(x)
            moved = moved * (before / norm) if norm > 0 else moved
        hidden[t] = (old + (moved - x)).to(dtype)


def _mixing(
    x: Tensor, down: Tensor, down_bias: Tensor, dtype: torch.dtype, activation: str, eps: float
) -> Tensor:
    """The mixing weights of wide states x that were of `dtype`."""
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    pre = rstd * (x @ down.to(dtype).to(x.dtype).T) + down_bias.to(x.dtype)
    return _activation(pre, activation).to(dtype).to(x.dtype)


def decisive_cross_entropy(
    hidden: Tensor,
    lm_head: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    teacher_hidden: Tensor | None = None,
    ce_weight: float = 1.0,
    kd_weight: float = 0.0,
    kd_weights: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: Tensor | None = None,
    kd_normalizer: Tensor | None = None,
    token_class: Tensor | None = None,
    rows: Tensor | None = None,
    chunk_bytes: int | None = None,
    validate: bool | None = None,
) -> DecisiveLoss:
    """Computes weighted cross entropy and distillation over one frozen head; see `dive.ops`.

    Every [N, V] tensor exists here, and dead rows are computed too. `chunk_bytes` and `validate`
    have no effect.
    """
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    distils = kd_weight > 0 and teacher_hidden is not None
    w = weights.to(wide)
    listed = torch.ones_like(w, dtype=torch.bool)
    if rows is not None:
        listed = torch.zeros_like(listed).index_fill(0, rows[rows >= 0], True)
    w = torch.where(listed, w, 0.0)
    m = torch.zeros_like(w)
    if distils:
        m = (w > 0).to(wide) if kd_weights is None else kd_weights.detach().to(wide)
        m = torch.where(listed, m, 0.0)
    live = (ce_weight * w.detach() > 0) | (kd_weight * m > 0)
    w = torch.where(live, w, 0.0)  # the weight of a dead row gets no gradient

    def logits(states: Tensor, used: Tensor) -> Tensor:
        states = torch.where(used[:, None], states, 0.0)
        z = F.linear(states, lm_head, bias).to(wide)
        return z if softcap is None else softcap * torch.tanh(z / softcap)

    z = logits(hidden, live)
    in_range = (targets >= 0) & (targets < lm_head.shape[0])
    picked = torch.log_softmax(z, -1).gather(1, torch.where(in_range, targets, 0)[:, None])[:, 0]
    row_ce = torch.where(live & in_range, -picked, 0.0)
    row_loss = ce_weight * _over(w, normalizer, reduction) * row_ce
    row_kl = None
    if distils:
        assert teacher_hidden is not None
        with torch.no_grad():
            log_teacher = torch.log_softmax(logits(teacher_hidden, m > 0) / temperature, -1)
        log_student = torch.log_softmax(z / temperature, -1)
        kl = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
        row_kl = torch.where(kd_weight * m > 0, temperature**2 * kl, 0.0)
        row_loss = row_loss + kd_weight * _over(m, kd_normalizer, reduction) * row_kl
        row_kl = row_kl.detach()

    row_ce = row_ce.detach()
    argmax = torch.where(live, z.detach().argmax(-1), -1)
    class_loss = class_accuracy = class_count = None
    if token_class is not None:
        counted = live & in_range & (w.detach() > 0)
        member = (token_class[:, None] == torch.arange(CLASSES, device=w.device)) & counted[:, None]
        class_count = member.sum(0)
        class_loss = (member * row_ce[:, None]).sum(0) / class_count.clamp(min=1)
        hit = (argmax == targets)[:, None]
        class_accuracy = (member & hit).sum(0).to(wide) / class_count.clamp(min=1)
    return DecisiveLoss(
        row_loss if reduction == "none" else row_loss.sum(),
        row_ce,
        row_kl,
        torch.where(live, torch.logsumexp(z.detach(), -1), 0.0),
        -row_ce,
        argmax,
        class_loss,
        class_accuracy,
        class_count,
    )


def _over(factors: Tensor, normalizer: Tensor | None, reduction: str) -> Tensor:
    """Returns the factors over the given normaliser, or over their own sum for a mean.

    0 for a normaliser of 0, and NaN for one without a reciprocal: infinity, and denormal numbers.
    """
    if normalizer is None:
        if reduction != "mean":
            return factors
        normalizer = factors.sum()
    total = normalizer.to(factors.dtype)
    some = (total >= torch.finfo(total.dtype).tiny) & (total < float("inf"))
    empty = torch.where(total > 0, float("nan"), 0.0)
    return torch.where(some, factors / torch.where(some, total, 1.0), empty)
