"""vLLM's model classes with room for steering adapters: `Dive` before the name of each.

A class is made when it is asked for, from the class of that name without `Dive` in the registry of
vLLM, of whatever family; whether its structure can be steered is decided when it is built.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm import ModelRegistry
from vllm.model_executor.models import config as families
from vllm.model_executor.models.interfaces import SupportsLoRA, supports_lora
from vllm.model_executor.models.utils import PPMissingLayer, WeightsMapper

from dive.errors import DiveError
from dive.vllm.card import check_card
from dive.vllm.checkpoint_names import as_vllm_knows
from dive.vllm.checkpoint_samples import CheckpointSamples
from dive.vllm.decoder import decoder_of, hold_in, steer_after
from dive.vllm.holders import CardHolder, LayerHolder, holders_of
from dive.vllm.installed import moved
from dive.vllm.packing import EXPORT, TARGET, unpack_card
from dive.vllm.plugin import PREFIX
from dive.vllm.settings import ServerSteering

logger = logging.getLogger("vllm.dive")


class Steered:
    """The part of a steered model that is the same for every family; comes before its class."""

    # vLLM would normalise pixels on the device, rounded otherwise than in the adapter's training
    supports_mm_device_do_normalize = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        _check_server(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._dive_manager: Any = None
        self._dive_samples = CheckpointSamples()
        self._dive_settings = ServerSteering.of_model(vllm_config.model_config.hf_config)
        text = vllm_config.model_config.hf_text_config
        self._dive_served = {
            "hidden_size": text.hidden_size,
            "num_layers": text.num_hidden_layers,
            "vocab_size": text.vocab_size,
        }
        model: Any = self
        name, owner, layers = decoder_of(model, text)
        device = next((one.device for one in model.parameters()), torch.device("cpu"))
        listed = _list_name(owner, layers)
        self._dive_layers: dict[int, LayerHolder] = {}
        for index, layer in enumerate(layers):
            if not isinstance(layer, PPMissingLayer):
                holder = self._dive_layers[index] = hold_in(layer, text.hidden_size, device)
                holder.prefix = f"{name}.{listed}.{index}.{TARGET}"
                steer_after(layer, self._dive_settings)
        # after the layers, so that the card comes when their numbers are there
        card = CardHolder(device, self._dive_arrives)
        card.prefix = f"{name}.{TARGET}"
        setattr(owner, TARGET, card)
        # the names in an exported adapter are the same for every family: "dive." is the decoder
        renamed = {"dive.layers.": f"{name}.{listed}.", "dive.card": f"{name}.{TARGET}"}
        mapper = getattr(self, "hf_to_vllm_mapper", None) or WeightsMapper()
        self.hf_to_vllm_mapper = mapper | WeightsMapper(orig_to_new_prefix=renamed)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], *given: Any, **named: Any) -> Any:
        """Loads weights as the family does, and samples them for the fingerprint."""
        loads: Any = super()
        parameters = [name for name, _ in self.named_parameters()]  # type: ignore[attr-defined]
        watched = self._dive_samples.watch(as_vllm_knows(weights, parameters))
        return loads.load_weights(watched, *given, **named)

    @property
    def lora_manager(self) -> Any:
        """vLLM's LoRA manager, which sets itself here when it has wrapped the holders."""
        return self._dive_manager

    @lora_manager.setter
    def lora_manager(self, manager: Any) -> None:
        holders = holders_of(manager)
        wanted = len(self._dive_layers) + 1
        if len(holders) != wanted:
            raise DiveError(
                f"{len(holders)} of {wanted} places for adapters are known to vLLM's LoRA manager, "
                f"want all: serve with --enable-lora --lora-target-modules {TARGET}"
            )
        if not isinstance(holders[-1][1].base_layer, CardHolder):
            raise moved("fills the modules of an adapter in another order")
        for _, wrapper in holders:
            holder = wrapper.base_layer
            holder.bind(wrapper)
            wrapper.set_lora = self._dive_or_forgotten(holder.set_lora)
            wrapper.reset_lora = self._dive_or_forgotten(holder.reset_lora)
        self._dive_manager = manager

    def _dive_or_forgotten(self, change: Callable[..., None]) -> Callable[..., None]:
        """`change` of an index, after whose error the LoRA manager does not know the adapter.

        Else it would take the adapter for loaded at the next request.
        """

        def changed(index: int, *tensors: Tensor) -> None:
            try:
                change(index, *tensors)
            except Exception:
                manager = self._dive_manager
                # some versions of vLLM note an adapter before it is in place, some after
                if (adapter_id := manager.lora_index_to_id[index]) is not None:
                    manager.remove_adapter(adapter_id)
                raise

        return changed

    def _dive_arrives(self, index: int, lora_a: Tensor | None) -> None:
        """Checks the card of the adapter that becomes the one of `index`."""
        if lora_a is None:
            raise DiveError(
                "the adapter has no card, so that it is none of dive's, want a folder written by "
                "dive export-vllm"
            )
        if not lora_a.any():
            if any(index in holder.held for holder in self._dive_layers.values()):
                raise DiveError(f"the adapter's card is empty; {EXPORT}")
            return  # a dummy with which vLLM warms up
        card = unpack_card(lora_a)
        warning = check_card(card, self._dive_served, self._dive_settings, self._dive_samples)
        for layer in card["layers"]:
            holder = self._dive_layers.get(layer)  # None for a layer of another pipeline stage
            if holder is not None and index not in holder.held:
                raise DiveError(
                    f"the adapter {card['sha256'][:12]} steers layer {layer} and has no numbers "
                    "for it, want the folder as dive export-vllm wrote it"
                )
        if warning:
            logger.warning("%s", warning)
        logger.info("adapter %s steers %d layers", card["sha256"][:12], len(card["layers"]))


def _list_name(owner: nn.Module, layers: nn.ModuleList) -> str:
    return next(name for name, child in owner.named_children() if child is layers)


def _check_server(vllm_config: Any) -> None:
    """Raises DiveError for settings of a server under which steering would be absent or wrong."""
    lora, parallel = vllm_config.lora_config, vllm_config.parallel_config
    if lora is None or [*(lora.target_modules or [])] != [TARGET]:
        raise DiveError(
            f"a steered model is served without room for adapters, want --enable-lora "
            f"--lora-target-modules {TARGET}"
        )
    for name in vllm_config.model_config.architectures:
        family = str(name).removeprefix(PREFIX)
        if family in getattr(families, "MODELS_CONFIG_MAP", {}):
            raise DiveError(
                f"vLLM finds settings of {family} by that name, which a steered class "
                "does not have, want a backbone of another family (without vLLM: dive generate "
                "--engine transformers)"
            )
    if getattr(lora, "default_mm_loras", None):
        raise DiveError(
            "--default-mm-loras steers requests that name no adapter, want it left out: a request "
            "names its adapter as its model"
        )
    passes = getattr(vllm_config.compilation_config, "pass_config", None)
    if getattr(passes, "enable_sp", False):
        raise DiveError(
            "sequence parallelism splits the residual stream over ranks, and dive steers it whole, "
            "want compilation_config.pass_config.enable_sp off"
        )
    for name in ("enable_dbo", "prefill_context_parallel_size", "decode_context_parallel_size"):
        value = getattr(parallel, name, None)
        if value not in (None, False, 1):
            raise DiveError(f"{name} is {value}, want it off: dive steers whole batches of tokens")


def steered(base: type) -> type:
    """The class of steered models of a family.

    base: vLLM's class of the family.
    """
    named = {"__module__": __name__, "__qualname__": PREFIX + base.__name__}
    # vLLM has LoRA for some families only, and steering needs none of what is special to them
    bases = (Steered, base) if supports_lora(base) else (Steered, base, SupportsLoRA)
    return type(PREFIX + base.__name__, bases, named)


def __getattr__(name: str) -> Any:
    family = name.removeprefix(PREFIX)
    if family == name or family not in ModelRegistry.models:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = steered(ModelRegistry.models[family].load_model_cls())
    globals()[name] = made
    return made
