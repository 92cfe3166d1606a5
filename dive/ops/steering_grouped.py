import torch

from dive.ops import steering_torch


def _impl(
    hidden, residual, adapters, down, down_bias, up, static, scale, activation, norm_preserving, eps
):
    n = hidden.shape[0]
    at = adapters[:n]
    for l in range(down.shape[0]):
        rows = (at == l).nonzero()[:, 0]
        if rows.numel():
            h = hidden[rows].float() + (0 if residual is None else residual[rows].float())
            out, _, _ = steering_torch.forward(
                h,
                down[l],
                down_bias[l],
                up[l],
                static[l],
                scale[l],
                None,
                activation,
                norm_preserving,
                eps,
                False,
            )
            hidden[rows] = (hidden[rows].float() + (out - h)).to(hidden.dtype)


from dive.ops.library import _library

_library.define(
    "steer_grouped_(Tensor(a!) hidden, Tensor? residual, Tensor adapters, Tensor down, Tensor down_bias, Tensor up, Tensor static, Tensor scale, str activation, bool norm_preserving, float eps) -> ()"
)
_library.impl("steer_grouped_", _impl, "CompositeExplicitAutograd")
torch.library.register_fake("dive::steer_grouped_", lambda *a: None, lib=_library)


def steer_grouped_(
    hidden,
    residual,
    adapters,
    down,
    down_bias,
    up,
    static,
    scale,
    *,
    activation="silu",
    norm_preserving=False,
    eps=1e-6,
):
    torch.ops.dive.steer_grouped_(
        hidden,
        residual,
        adapters,
        down,
        down_bias,
        up,
        static,
        scale,
        activation,
        norm_preserving,
        eps,
    )
