"""How large the terms are of which the gradients of bias and scale are sums."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dive import reference

BIAS, SCALE = 3, 6  # among a result and its six gradients


def norms(exact: Sequence[Tensor], upstream: Tensor, **options: Any) -> dict[int, Tensor]:
    """By place among the results. exact: the arguments in float64, h being [T, D].

    The terms cancel, so that the sums' own size tells nothing of how near they can come. Every
    token has a bias of its own here, and every number a scale: their gradients are the terms.
    """
    h, down, bias, up, static, scale = (x.detach() for x in exact)
    own_bias = bias.expand(h.shape[0], -1).clone().requires_grad_()
    own_scale = scale.expand(h.shape).clone().requires_grad_()
    out = reference.steer(h, down, own_bias, up, static, own_scale, **options)
    terms = torch.autograd.grad(out, [own_bias, own_scale], upstream.double())
    return {BIAS: terms[0].norm(), SCALE: terms[1].norm()}
