"""The calibration of an adapter: the scale of each steered layer's residual stream."""

import statistics
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from dive.adapter.adapter import SteeringAdapter
from dive.adapter.attach import attached_here, unsteered
from dive.backbone.model_lock import model_lock
from dive.backbone.structure import decoder_layers, forget_compiled, last_hidden_state, unwrap
from dive.errors import DiveError
from dive.training.examples import Example, Examples
from dive.training.image_features import image_cache
from dive.training.preparation import Prepared


def calibrate_adapter(prepared: Prepared) -> None:
    """Calibrate the adapter on the first studies, whose images are the first to be decoded; make
    the cache of image features before that, if one is requested.

    Raises:
        UnreadableStudy: a study cannot be decoded, and none is to be skipped.
    """
    request, examples = prepared.request, prepared.examples
    config = request.inputs.config
    if config.cache_images:
        folder = None if config.cache_images is True else config.cache_images
        first = next(prepared.left_out.readable(examples))
        examples.features = image_cache(request.prompter, examples.studies[first.index], folder)
        if prepared.validation is not None:
            prepared.validation.features = examples.features
    chosen = islice(prepared.left_out.readable(examples), config.calibration_studies)
    calibrate(request.inputs.backbone, request.adapter, calibration_inputs(examples, chosen))


@torch.no_grad()
def calibrate(
    model: Any, adapter: SteeringAdapter, inputs: Iterable[tuple[dict[str, Any], Tensor]]
) -> None:
    """Set each steered layer's sigma to the median RMS of its output at the masked positions.

    `inputs` yields model inputs with a bool mask [B, T] (the response positions). The model runs
    without the adapter. The edit is relative to the residual stream, whose RMS is 1 in some models
    and hundreds in others, so that one learning rate suits them all.
    """
    model = unwrap(model)
    adapter.check_backbone(model)
    if attached_here(model):
        raise DiveError("calibrate: an adapter is attached to the model; detach it first")
    layers = decoder_layers(model)
    steered: Any = adapter.layers
    rms: dict[str, list[float]] = {index: [] for index in steered}
    masks: list[Tensor] = []  # the mask of the batch that runs, if one does
    thread = threading.get_ident()

    def measure(index: str) -> Any:
        @torch._disable_dynamo
        def hook(_module: nn.Module, _inputs: tuple, output: Any) -> None:
            if threading.get_ident() != thread or not masks:
                return  # a forward of another thread
            hidden = output[0] if isinstance(output, tuple) else output
            mask = masks[-1]
            if mask.shape != hidden.shape[:-1] or mask.dtype != torch.bool:
                raise DiveError(
                    f"calibrate: the mask is {mask.dtype} {list(mask.shape)}, want torch.bool "
                    f"{list(hidden.shape[:-1])}"
                )
            states = hidden[mask.to(hidden.device)].float()
            rms[index] += states.pow(2).mean(-1).sqrt().tolist()

        return hook

    forget_compiled(model)
    handles = [layers[int(i)].register_forward_hook(measure(i)) for i in rms]
    try:
        for batch, mask in inputs:
            with model_lock(model), unsteered(model):
                masks[:] = [mask]
                last_hidden_state(model, batch)
                masks.clear()
    finally:
        for handle in handles:
            handle.remove()
        forget_compiled(model)
    for index, measured in rms.items():
        sigma = statistics.median(measured) if measured else float("nan")
        if not 0 < sigma < float("inf"):
            raise DiveError(
                f"calibrate: layer {index} has the RMS {sigma} over {len(measured)} positions, "
                "want a finite number > 0"
            )
        steered[index].sigma.fill_(sigma)


def calibration_inputs(
    examples: Examples, chosen: Iterable[Example]
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Model inputs and response positions of these examples, as `calibrate` takes them."""
    for one in chosen:
        batch = examples.collate([one])
        shown = [examples.studies[one.index]]
        yield examples.model_inputs(batch["inputs"], shown, [one.inputs]), batch["positions"]
