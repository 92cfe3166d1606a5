"""The card of an adapter: what a server must know of it before it steers with it.

It travels as a module of its own among the adapter's layers, since vLLM hands nothing but tensors
to a model.
"""

from typing import Any

from dive import __version__
from dive.adapter.adapter import SteeringAdapter
from dive.backbone.fingerprint import sampled_weights
from dive.errors import DiveError
from dive.vllm.checkpoint_samples import CheckpointSamples
from dive.vllm.packing import CARD_FORMAT
from dive.vllm.settings import ServerSteering

_FACTS = ("hidden_size", "num_layers", "vocab_size")
_FINGERPRINT = ("each", "samples", "made_up", "tuners")


def card_of(adapter: SteeringAdapter, model: Any) -> dict[str, Any]:
    """The card of an adapter, as JSON values.

    model: the transformers model of the adapter's backbone, which needs no weights (device meta).
    """
    made = adapter.metadata.get("weights") or {}
    weights = sampled_weights(model)
    fingerprint = None
    if made.get("samples") is not None and {*_FINGERPRINT} <= made.keys():
        fingerprint = {name: made[name] for name in _FINGERPRINT} | {"weights": weights}
    settings = ServerSteering.of_adapter(adapter.config)
    return {
        "format": CARD_FORMAT,
        "dive_version": __version__,
        "sha256": adapter.weights_sha256(),
        "layers": [int(index) for index in adapter.layers],
        "backbone": {name: adapter.metadata["backbone"].get(name) for name in _FACTS},
        "steering": {
            "activation": settings.activation,
            "norm_preserving": settings.norm_preserving,
            "eps": settings.eps,
            "positions": settings.positions,
        },
        "fingerprint": fingerprint,
    }


def check_card(
    card: dict[str, Any],
    served: dict[str, Any],
    settings: ServerSteering,
    samples: CheckpointSamples,
) -> str | None:
    """Raises DiveError for an adapter that these settings, or this model, cannot serve.

    served: hidden_size, num_layers and vocab_size of the model. Returns a warning where the
    weights could not be compared, else None.
    """
    name = f"the adapter {card['sha256'][:12]}"
    for fact in _FACTS:
        wanted = card["backbone"].get(fact)
        if wanted is not None and wanted != served[fact]:
            raise DiveError(
                f"{name} belongs to another backbone: {fact} is {served[fact]} here and was "
                f"{wanted} where the adapter was made"
            )
    other = settings.difference(card["steering"])
    if other is not None:
        raise DiveError(
            f"{name} wants {other}: a server has one value for all adapters, want a server of its "
            "own, started with the --hf-overrides that dive export-vllm prints for it"
        )
    same = samples.same(card["fingerprint"])
    if same is False and not settings.other_weights:
        raise DiveError(
            f"{name} was made on other weights than those served (further trained, or with a LoRA "
            'that is not merged here), want its own, or "dive_steering": {"other_weights": true} '
            "in --hf-overrides"
        )
    if same is None:
        return f"{name}: whether it was made on the weights that are served is not known"
    return None
