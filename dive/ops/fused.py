"""The Triton kernels in the place of the PyTorch paths, on CUDA.

float64 stays on the PyTorch path: the kernels sum in float32. Triton is imported at the first call.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from dive.ops import steering, sweep
from dive.ops.registration import register_kernel


def available() -> bool:
    """Whether this torch has CUDA and Triton can be imported."""
    return torch.version.cuda is not None and importlib.util.find_spec("triton") is not None


def install(key: str = "CUDA") -> None:
    """Registers the kernels for a device; for "CPU" Triton's interpreter has to be on."""
    register_kernel("steer", _steer, key)
    register_kernel("steer_backward", _steer_backward, key)
    register_kernel("decisive_cross_entropy", _loss, key)
    register_kernel("decisive_cross_entropy_backward", _loss_backward, key)


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
    kind = sweep.Sweep if hidden.dtype == torch.float64 else _FusedSweep
    return sweep.forward(hidden, *args, kind=kind)


def _loss_backward(
    grad: Tensor, rows: Tensor, stored: Tensor, row_scale: Tensor, weight_slope: Tensor, total: int
) -> tuple[Tensor, Tensor]:
    if stored.dtype == torch.float64:
        return sweep.backward(grad, rows, stored, row_scale, weight_slope, total)
    from dive.kernels.cross_entropy import backward

    return backward(grad, rows, stored, row_scale, weight_slope, total)


class _FusedSweep(sweep.Sweep):
    """Logits in float32 whatever the inputs; one kernel between a chunk's two products.

    It asks the device nothing: every slot of `rows` is computed, live or not.
    """

    compacts = False

    def _chunks(
        self,
        index: Tensor,
        live: Tensor,
        target: Tensor,
        labelled: Tensor,
        ce: Tensor,
        kd: Tensor,
        distilled: Tensor,
        chunk_bytes: int,
    ) -> None:
        from dive.kernels import cross_entropy as kernel

        vocab = self.head.shape[0]
        stride = kernel.row_stride(vocab)
        layout = sweep.plan(
            index.shape[0],
            stride,
            torch.float32,
            self.hidden.device,
            chunk_bytes,
            self.teacher is not None,
            self.softcap is not None,
            self.temperature != 1,
            fused=True,
        )
        buffers = [
            ce.new_empty(layout.chunk_rows, stride) for _ in range(1 + (self.teacher is not None))
        ]
        for start in range(0, index.shape[0], layout.chunk_rows):
            part = slice(start, min(start + layout.chunk_rows, index.shape[0]))
            chosen = index[part]
            logits, *others = (buffer[: chosen.shape[0]] for buffer in buffers)
            # a row that takes no part may hold anything
            states = self.hidden[chosen].masked_fill_(~live[part, None], 0.0)
            kernel.product(states, self.head, logits[:, :vocab])
            teacher = None
            if self.teacher is not None:
                teacher = others[0]
                states = self.teacher[chosen].masked_fill_(~distilled[part, None], 0.0)
                kernel.product(states, self.head, teacher[:, :vocab])
            gradient = None
            if self.compute_grad:
                gradient = kernel.gradient_view(logits, vocab, self.hidden.dtype)
            kernel.turn_into_gradient(
                logits,
                teacher,
                self.bias,
                gradient,
                target[part],
                labelled[part],
                ce[part],
                kd[part],
                distilled[part],
                (self.lse[part], self.picked[part], self.argmax[part], self.kl[part]),
                vocab,
                self.softcap,
                self.temperature,
            )
            if gradient is not None:
                kernel.states(gradient, self.head, self.stored[part])
