"""Names of weights in checkpoints that vLLM does not know."""

from collections.abc import Iterable, Iterator

from torch import Tensor

_TOWERS = ("vision_tower.", "model.vision_tower.")
_INSIDE = "vision_model."


def as_vllm_knows(
    weights: Iterable[tuple[str, Tensor]], parameters: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """Weights under the names that vLLM reads.

    Newer transformers save CLIP and SigLIP towers without `vision_model.`, while checkpoints
    on the hub and vLLM have it.

    parameters: names of the model's own, which decide.
    """
    nested = any(_INSIDE in name and name.startswith("vision_tower.") for name in parameters)
    for name, weight in weights:
        tower = next((one for one in _TOWERS if name.startswith(one)), None)
        if nested and tower is not None and not name.startswith(tower + _INSIDE):
            name = tower + _INSIDE + name.removeprefix(tower)
        yield name, weight
