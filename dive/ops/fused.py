"""The Triton kernels in the place of the PyTorch paths, on CUDA.

float64 stays on the PyTorch path: the kernels sum in float32. Triton is imported at the first call.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dive.ops import steering, sweep
from dive.ops.registration import register_kernel
from dive.ops.values import raise_for


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
        return sweep.forward(hidden, *args)
    return _fused_loss(hidden, *args)


def _loss_backward(
    grad: Tensor, rows: Tensor, stored: Tensor, row_scale: Tensor, weight_slope: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    if stored.dtype == torch.float64:
        return sweep.backward(grad, rows, stored, row_scale, weight_slope, total)
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
    """`sweep.forward` in a launch before the chunks, one after them, and for each chunk its
    products, a gathering of the states of each and the row pass.

    Logits are float32 whatever the inputs. It asks the device nothing (but to validate): every slot
    of `rows` is computed, live or not.
    """
    from dive.kernels import cross_entropy as kernel
    from dive.kernels.bookkeeping import finish, gather, prepare
    from dive.kernels.schedule import aside, in_turns
    from dive.kernels.table import cdiv, host

    vocab, width = lm_head.shape
    device, dtype, capacity = hidden.device, hidden.dtype, rows.shape[0]
    distils = teacher_hidden is not None
    gain = sweep.gain(dtype, vocab)
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
        sweep.raise_for_bad(
            slots.status, weights, rows, kd_weights, distils, ce_weight, kd_weight, vocab
        )

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    results = empty(capacity), empty(capacity), empty(capacity, dtype=torch.int64), empty(capacity)
    stored = empty(capacity if compute_grad else 0, width, dtype=dtype)
    stride = kernel.row_stride(vocab)
    buffers = host("cross_entropy_rows", device, dtype, 0, vocab)["buffers"]
    layout = sweep.plan(
        capacity,
        stride,
        torch.float32,
        device,
        chunk_bytes // buffers,
        distils,
        False,
        False,
        fused=True,
    )
    chunks = cdiv(capacity, max(layout.chunk_rows, 1))
    buffers = min(buffers, max(chunks, 1))
    students = [empty(layout.chunk_rows, stride) for _ in range(buffers)]
    teachers = [empty(layout.chunk_rows, stride) for _ in range(buffers if distils else 0)]

    def part_of(chunk: int) -> slice:
        start = chunk * layout.chunk_rows
        return slice(start, min(start + layout.chunk_rows, capacity))

    def held(logits: list[Tensor], chunk: int) -> Tensor:
        part = part_of(chunk)
        return logits[chunk % buffers][: part.stop - part.start]

    def make_logits(chunk: int) -> None:
        part = part_of(chunk)
        # a row that takes no part may hold anything
        states = gather(hidden, slots.index[part], slots.live[part])
        kernel.product(states, lm_head, held(students, chunk)[:, :vocab])
        if teacher_hidden is not None:
            states = gather(teacher_hidden, slots.index[part], slots.distilled[part])
            kernel.product(states, lm_head, held(teachers, chunk)[:, :vocab])

    def turn_rows(chunk: int) -> None:
        part, logits = part_of(chunk), held(students, chunk)
        lse, picked, argmax, kl = results
        kernel.turn_into_gradient(
            logits,
            held(teachers, chunk) if distils else None,
            bias,
            kernel.gradient_view(logits, vocab, dtype) if compute_grad else None,
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

    def make_states(chunk: int) -> None:
        if compute_grad:
            gradient = kernel.gradient_view(held(students, chunk), vocab, dtype)
            kernel.to_hidden(gradient, lm_head, stored[part_of(chunk)])

    where = aside(device, buffers)
    in_turns(chunks, buffers, make_logits, turn_rows, make_states, where)
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
