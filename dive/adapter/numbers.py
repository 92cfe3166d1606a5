"""The values of an adapter: finite, and of a size that a hidden state's dtype can hold.

A float32 has 24 bits: after an edit of 2^24 times its state nothing of the state is left, in any
dtype that a model runs in. So no useful adapter has such an edit, and a larger one would make later
norms overflow: with states up to 2^30 (the RMS of real ones is 0.01 to some thousands) the sum of
the squares of 2^54 over a width of 2^16 is still a float32.
"""

import math
from typing import Any

import torch
from torch import Tensor

from dive.errors import DiveError

MOST_EDIT = 2.0**24  # bound on an edit's largest entry over the RMS of its state
MOST_SIGMA = 2.0**30  # bound on the RMS of a layer's states


@torch.no_grad()
def check_numbers(adapter: Any, name: str = "the adapter") -> None:
    """Raises DiveError naming the tensor that is not finite, or whose edit is too large.

    name: of the adapter, for the error. One host sync per device.

    The bound on an edit is by the triangle inequality over states of the calibrated RMS: it may
    exceed the edit of any state, by about the square root of width and rank, and is never below it.
    """
    layers = list(adapter.layers.items())
    by_device: dict[torch.device, list[int]] = {}
    for position, (_, layer) in enumerate(layers):
        by_device.setdefault(layer.scale.device, []).append(position)
    measured = {
        position: row
        for here in by_device.values()
        for position, row in zip(here, _measured([layers[p][1] for p in here]), strict=True)
    }
    for position, (index, layer) in enumerate(layers):
        row = measured[position]
        if row is None:
            continue
        names = [each for each, _ in layer.named_parameters()] + ["sigma"]
        *finite, sigma, scale, edit, static = row.tolist()
        at = f"{name}: tensor layers.{index}"
        broken = next((each for each, good in zip(names, finite, strict=True) if not good), None)
        if broken is not None:
            raise DiveError(f"{at}.{broken} holds numbers that are not finite")
        if not 0 < sigma <= MOST_SIGMA:
            raise DiveError(
                f"{at}.sigma is {sigma:g}, want the RMS of a state, above 0 and up to 2^30"
            )
        if not abs(scale) <= MOST_EDIT:
            raise DiveError(f"{at}.scale is {scale:g}, want at most 2^24 in size: {_WHY}")
        if not edit <= MOST_EDIT:
            which = "static" if static > MOST_EDIT else "up"
            much = f"{edit:.3g}" if math.isfinite(edit) else "more than any number"
            raise DiveError(
                f"{at}.{which} is too large: with it the layer's edit may be {much} times the RMS "
                f"of its states, want at most 2^24 times: {_WHY}"
            )


def _measured(layers: list[Any]) -> list[Tensor] | list[None]:
    """`_numbers` of layers on one device, copied to the host; None for meta tensors."""
    measured = torch.stack([_numbers(layer) for layer in layers])
    if type(measured) is not Tensor or measured.device.type == "meta":
        return [None] * len(layers)
    return [*measured.cpu()]


_WHY = "after a larger edit nothing is left of a state in any dtype"


def _numbers(layer: Any) -> Tensor:
    """One layer's values, float64: which of its tensors are finite, sigma, scale, the largest entry
    that an edit may have over sigma, and the same of `static` alone."""
    tensors = [*(tensor for _, tensor in layer.named_parameters()), layer.sigma]
    finite = [tensor.isfinite().all().double() for tensor in tensors]
    down, up = layer.down.double(), layer.up.double()
    # a state over its RMS has norm sqrt(D), and no activation exceeds its argument in size
    mix = down.norm(dim=1) * math.sqrt(down.shape[1]) + layer.down_bias.double().abs()
    if layer.config.activation == "tanh":
        mix = mix.clamp(max=1.0)
    scale = layer.scale.double().abs()
    static = scale * layer.static.double().abs()
    edit = scale * (up.abs() @ mix) + static
    least = [layer.sigma.double(), layer.scale.double(), edit.max(), static.max()]
    return torch.stack([*finite, *least])
