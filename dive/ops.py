"""Provisional: the operators in plain PyTorch, until their registration stands here."""

import torch
from torch import Tensor
from torch.nn import functional as F

_ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


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
    x = h.float()
    u = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    z = _ACTIVATIONS[activation](u @ down.T + down_bias)
    out = x + scale * (z @ up.T + static)
    if norm_preserving:
        old, new = x.norm(dim=-1, keepdim=True), out.norm(dim=-1, keepdim=True)
        out = torch.where(new > 0, out * old / new.clamp_min(1e-30), x)
    if mask is not None:
        out = torch.where(mask[..., None], out, x)
    return out.to(h.dtype)
