"""The scale of each layer's stream, measured before the first step."""

import statistics
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dive.adapter.adapter import SteeringAdapter
from dive.adapter.attach import attached_here, unsteered
from dive.backbone.model_lock import model_lock
from dive.backbone.structure import decoder_layers, forget_compiled, last_hidden_state, unwrap
from dive.errors import DiveError
from dive.training.examples import Example, Examples


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
    if attached_here(model):
        raise DiveError("calibrate measures the bare model: detach the adapter first")
    layers = decoder_layers(model)
    steered: Any = adapter.layers
    values: dict[str, list[float]] = {index: [] for index in steered}
    marked: list[Tensor] = []  # the mask of the batch that runs
    thread = threading.get_ident()

    def measure(index: str) -> Any:
        @torch._disable_dynamo
        def hook(_module: nn.Module, _inputs: tuple, output: Any) -> None:
            if threading.get_ident() != thread or not marked:
                return  # another's forward
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
            with model_lock(model), unsteered(model):
                marked[:] = [mask]
                last_hidden_state(model, batch)
                marked.clear()
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


def calibration_inputs(
    examples: Examples, some: Iterable[Example]
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """What `calibrate` takes, of these examples: model inputs, and their response positions."""
    for one in some:
        batch = examples.collate([one])
        shown = [examples.studies[one.index]]
        yield examples.model_inputs(batch["inputs"], shown, [one.inputs]), batch["positions"]
