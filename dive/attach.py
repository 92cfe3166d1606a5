"""Attach an adapter to a model, and take it off without a trace.

Hooks on the model's own decoder layers; no class is patched and no weight is touched.
"""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from dive.adapter import SteeringAdapter, as_adapter
from dive.errors import DiveError
from dive.structure import computes_on, decoder_layers, forget_compiled, last_hidden_state, unwrap

# id of the first decoder layer -> what is attached there; a layer, because a model and its base
# share them. An attachment lives by its hooks, so it keeps no forgotten model alive, and as it
# holds its layer an id stands for one layer as long as the entry is here.
_attached: "WeakValueDictionary[int, Attachment]" = WeakValueDictionary()


class Attachment:
    """An adapter at work on a model, until `detach` or the end of the `with` block.

    mask: bool [B, T], the positions that are steered in the next forwards, or None. With None the
        adapter's own rule holds: all positions, or with positions="response" the last position of
        every forward (the last prompt position at prefill under left padding, then each generated
        token). Training gives the mask of the response explicitly; so must whatever runs a prompt
        in pieces or several generated tokens at once.
    enabled: False lets states pass unchanged (a teacher's forward between two of the student's).
    calls: how often a layer was steered outside compiled code, to assert that there was an effect.
    """

    adapter: SteeringAdapter | None

    def __init__(self, model: nn.Module, adapter: SteeringAdapter, check: bool = True) -> None:
        """check: False where the caller has done so: the model's weights are looked at."""
        self.adapter = adapter
        if check:
            adapter.check_backbone(model)
        self._hang(model, [int(index) for index in adapter.layers])

    def _hang(self, model: nn.Module, indices: Iterable[int]) -> None:
        """Hooks on these layers of a model that has no attachment yet."""
        self.model = model
        self.mask: Tensor | None = None
        self.enabled = True
        self.calls = 0
        layers = decoder_layers(model)
        self._first = layers[0]
        if id(self._first) in _attached:
            raise DiveError(
                "a steering adapter is already attached to this model; detach it first (two "
                "adapters at once are not defined)"
            )
        forget_compiled(model)
        edits = [
            (layers[index], self._edit(index, computes_on(layers[index]))) for index in indices
        ]
        self._handles = [
            # first in line: transformers records hidden states by hooks, which must see our output
            layer.register_forward_hook(self._hook(edit), prepend=True)
            for layer, edit in edits
        ]
        _attached[id(self._first)] = self

    def _edit(self, index: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """What happens to the output [B, T, D] of layer `index`, which computes on `device`."""
        assert self.adapter is not None
        layers: Any = self.adapter.layers
        steering = layers[str(index)].to(device)
        last_only = self.adapter.config.positions == "response"
        return lambda hidden: steering(hidden, self._positions(hidden, last_only))

    @property
    def steers(self) -> tuple[SteeringAdapter | None, ...]:
        """The adapter of all rows of a batch, or one entry a row."""
        return (self.adapter,)

    def _hook(self, edit: Callable[[Tensor], Tensor]) -> Any:
        def steer_output(_module: nn.Module, _inputs: tuple, output: Any) -> Any:
            if not self.enabled:
                return output
            hidden = output[0] if isinstance(output, tuple) else output
            steered = edit(hidden)
            if not torch.compiler.is_compiling():
                self.calls += 1
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        return steer_output

    def _positions(self, hidden: Tensor, last_only: bool) -> Tensor | None:
        if self.mask is not None:
            if self.mask.shape != hidden.shape[:-1]:
                raise DiveError(
                    f"attachment.mask is {list(self.mask.shape)}, but this forward has the "
                    f"positions {list(hidden.shape[:-1])}"
                )
            return self.mask.to(hidden.device)
        if not last_only or hidden.shape[-2] == 1:
            return None
        last = torch.zeros(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)
        last[..., -1] = True
        return last

    def detach(self) -> None:
        """Takes every hook away; the model is then what it was before. Twice is harmless."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if _attached.get(id(self._first)) is self:
            del _attached[id(self._first)]

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_error: object) -> None:
        self.detach()


def steer(backbone_or_model: Any, adapter: SteeringAdapter | str | Path) -> Attachment:
    """Attaches `adapter` (or what its folder holds); use it in a `with`, or call `.detach()` on
    what is returned.

    The adapter's parameters move to the devices of their layers. DiveError where the adapter
    belongs to another backbone, or another one is attached already.
    """
    return Attachment(unwrap(backbone_or_model), as_adapter(adapter, "steer: adapter"))


def attachment_of(model: Any) -> Attachment | None:
    """What is attached to the model now."""
    return _attached.get(id(decoder_layers(model)[0]))


@torch.no_grad()
def calibrate(
    model: Any, adapter: SteeringAdapter, inputs: Iterable[tuple[dict[str, Any], Tensor]]
) -> None:
    """Sets each steered layer's sigma: the median RMS of its output at the marked positions.

    `inputs` yields model inputs with a bool mask [B, T] (the response positions). The model runs
    without the adapter. The edit is then relative to the stream, whose RMS is 1 in some models and
    hundreds in others, so that one learning rate serves them all.
    """
    model = unwrap(model)
    adapter.check_backbone(model)
    if attachment_of(model) is not None:
        raise DiveError("calibrate measures the bare model: detach the adapter first")
    layers = decoder_layers(model)
    steered: Any = adapter.layers
    values: dict[str, list[float]] = {index: [] for index in steered}
    marked: list[Tensor] = []  # the mask of the batch that runs

    def measure(index: str) -> Any:
        def hook(_module: nn.Module, _inputs: tuple, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            mask = marked[-1]
            if mask.shape != hidden.shape[:-1] or mask.dtype != torch.bool:
                raise DiveError(
                    f"calibrate: a bool mask {list(hidden.shape[:-1])} is wanted, got {mask.dtype} "
                    f"{list(mask.shape)}"
                )
            states = hidden[mask.to(hidden.device)].float()
            values[index] += states.pow(2).mean(-1).sqrt().tolist()

        return hook

    forget_compiled(model)
    handles = [layers[int(i)].register_forward_hook(measure(i)) for i in values]
    try:
        for batch, mask in inputs:
            marked[:] = [mask]
            last_hidden_state(model, batch)
    finally:
        for handle in handles:
            handle.remove()
        forget_compiled(model)
    for index, measured in values.items():
        sigma = statistics.median(measured) if measured else float("nan")
        if not 0 < sigma < float("inf"):
            raise DiveError(
                f"calibrate: layer {index} has the RMS {sigma} over {len(measured)} positions, "
                "want a finite number > 0"
            )
        steered[index].sigma.fill_(sigma)
