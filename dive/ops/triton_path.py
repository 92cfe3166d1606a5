"""The Triton kernels in the place of the PyTorch paths, on CUDA.

float64 stays on the PyTorch path: the kernels sum in float32. Triton is imported at the first call.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dive.ops import cross_entropy_torch, steering
from dive.ops.checks import raise_for
from dive.ops.library import register_kernel


def missing() -> str | None:
    """Why the kernels cannot be used on a GPU; None where they can."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return None if importlib.util.find_spec("triton") is not None else "triton is not installed"


def install(key: str = "CUDA") -> None:
    """Registers the kernels for a device; for "CPU" Triton's interpreter has to be on."""
    kernels = {
        "steer": _steer,
        "steer_backward": _steer_backward,
        "decisive_cross_entropy": _loss,
        "decisive_cross_entropy_backward": _loss_backward,
    }
    for name, kernel in kernels.items():
        register_kernel(name, _on_its_device(kernel) if key == "CUDA" else kernel, key)


def _on_its_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device; a backbone may lie on several."""

    @functools.wraps(kernel)
    def run(first: Tensor, *args: Any) -> Any:
        if first.device.index == torch.cuda.current_device():
            return kernel(first, *args)
        with torch.cuda.device(first.device):
            return kernel(first, *args)

    return run


def _steer(h: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    if h.dtype == torch.float64:
        return steering._forward(h, *args)
    from dive.kernels.steer import forward

    return forward(h, *args)


def _steer_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    if grad.dtype == torch.float64:
        return steering._backward(grad, *args)
    from dive.kernels.steer_backward import backward

    return backward(grad, *args)


def _loss(hidden: Tensor, *args: Any) -> tuple[Tensor, ...]:
    if hidden.dtype == torch.float64:
        return cross_entropy_torch.forward(hidden, *args)
    return _fused_loss(hidden, *args)


def _loss_backward(
    grad: Tensor, rows: Tensor, stored: Tensor, row_scale: Tensor, weight_slope: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    if stored.dtype == torch.float64:
        return cross_entropy_torch.backward(grad, rows, stored, row_scale, weight_slope, total)
    from dive.kernels.cross_entropy import backward

    return backward(grad, rows, stored, row_scale, weight_slope, total)


def _fused_loss(
    hidden: Tensor,
    lm_head: Tensor,
    targets: Tensor,
    weights: Tensor,
    rows: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor | None,
    kd_weights: Tensor | None,
    normalizer: Tensor | None,
    kd_normalizer: Tensor | None,
    token_class: Tensor | None,
    softcap: float | None,
    ce_weight: float,
    kd_weight: float,
    temperature: float,
    reduction: str,
    chunk_bytes: int,
    validate: bool,
    compute_grad: bool,
) -> tuple[Tensor, ...]:
    """`cross_entropy_torch.forward` in a launch before the chunks, one after them, and for each
    chunk its products, a gathering of the states of each and the row pass.

    Logits are float32 whatever the inputs. It asks the device nothing (but to validate): every slot
    of `rows` is computed, live or not.
    """
    from dive.kernels import cross_entropy as kernel
    from dive.kernels.bookkeeping import finish, gather, prepare

    vocab, width = lm_head.shape
    device, dtype, capacity = hidden.device, hidden.dtype, rows.shape[0]
    distils = teacher_hidden is not None
    gain = cross_entropy_torch.gain(dtype, vocab)
    bias = None if bias is None else bias.contiguous()
    slots = prepare(
        targets,
        weights,
        rows,
        kd_weights,
        normalizer,
        kd_normalizer,
        distils,
        ce_weight,
        kd_weight,
        temperature,
        reduction == "mean",
        gain,
        vocab,
    )
    if validate:
        cross_entropy_torch.raise_for_bad(
            slots.status, weights, rows, kd_weights, distils, ce_weight, kd_weight, vocab
        )

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    results = empty(capacity), empty(capacity), empty(capacity, dtype=torch.int64), empty(capacity)
    stored = empty(capacity if compute_grad else 0, width, dtype=dtype)
    stride = kernel.row_stride(vocab)
    layout = cross_entropy_torch.plan(
        capacity, stride, torch.float32, device, chunk_bytes, distils, False, False, fused=True
    )
    student = empty(layout.chunk_rows, stride)
    teacher = empty(layout.chunk_rows, stride) if distils else None
    for start in range(0, capacity, max(layout.chunk_rows, 1)):
        part = slice(start, min(start + layout.chunk_rows, capacity))
        index, count = slots.index[part], part.stop - part.start
        logits = student[:count]
        # a row that takes no part may hold anything
        states = gather(hidden, index, slots.live[part])
        kernel.product(states, lm_head, logits[:, :vocab])
        logits_teacher = None
        if teacher_hidden is not None and teacher is not None:
            logits_teacher = teacher[:count]
            states = gather(teacher_hidden, index, slots.distilled[part])
            kernel.product(states, lm_head, logits_teacher[:, :vocab])
        gradient = kernel.gradient_view(logits, vocab, dtype) if compute_grad else None
        lse, picked, argmax, kl = results
        kernel.turn_into_gradient(
            logits,
            logits_teacher,
            bias,
            gradient,
            slots.target[part],
            slots.labelled[part],
            slots.ce[part],
            slots.kd[part],
            slots.distilled[part],
            (lse[part], picked[part], argmax[part], kl[part]),
            vocab,
            softcap,
            temperature,
        )
        if gradient is not None:
            kernel.to_hidden(gradient, lm_head, stored[part])
    outputs = finish(
        slots,
        results,
        weights,
        kd_weights,
        token_class,
        distils,
        temperature,
        centred=reduction == "mean" and normalizer is None,
        by_row=reduction == "none",
    )
    if validate:
        raise_for(slots.status)
    return (*outputs[:-1], slots.status, stored, slots.scale, outputs[-1])
