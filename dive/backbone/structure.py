"""Text decoder, layers and head of a model, found in the model and not by a list of names.

Every function takes a `Backbone` or a bare transformers model.
"""

import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dive.backbone.tuners import added, computed_around, is_tuner, kind_of
from dive.errors import DiveError, checks
from dive.errors.private import public_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def unwrap(backbone_or_model: Any) -> "PreTrainedModel":
    """The transformers model that computes, of a `Backbone`, a bare model or one in wrappers.

    Looks through torch.compile, PEFT and data parallelism. LoRA and similar methods stay active:
    PEFT puts them into the model's own layers.

    Raises:
        DiveError: not a model, or a wrapper that computes something itself (prompt tuning).
    """
    model: Any = backbone_or_model
    if not isinstance(model, nn.Module):
        model = getattr(backbone_or_model, "model", None)
    model = _innermost(model)
    # by its config and not by its class, so that a wrapper that forwards attributes is accepted
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise DiveError(
            f"got a {type(backbone_or_model).__name__}, want a Backbone or a transformers model"
        )
    found: Any = model
    return found


def _innermost(module: Any) -> Any:
    """The module inside all wrappers of torch and PEFT; anything but a module as it is."""
    while isinstance(module, nn.Module) and (inner := _beneath(module)) is not None:
        module = inner
    return module


def _beneath(model: nn.Module) -> Any:
    """The module inside a wrapper of torch or PEFT; None for a model that is no wrapper."""
    parts = model._modules
    if "_orig_mod" in parts:  # torch.compile
        return parts["_orig_mod"]
    if [*parts] == ["module"]:  # DistributedDataParallel, DataParallel
        return parts["module"]
    if "_fsdp_wrapped_module" in parts:
        raise DiveError(
            "the model is in FullyShardedDataParallel, which shards its weights: give dive a model "
            "that is whole in every process (or spread by load_backbone's device_map)"
        )
    peft: Any = sys.modules.get("peft")  # nothing is of PEFT unless it was imported
    if peft is None:
        return None
    if isinstance(model, (peft.PeftModel, peft.PeftMixedModel)):
        held: Any = model
        off = bool(getattr(held, "_adapters_disabled", False))
        around = None if off else computed_around(held.peft_config, held.active_adapter)
        if around is not None:
            raise DiveError(
                f"{type(model).__name__} with {around}: PEFT computes this around the model and "
                "not in its layers, and dive runs the model itself; LoRA and its kin work in the "
                "layers (get_base_model() is the model without it)"
            )
        return held.get_base_model() if isinstance(held, peft.PeftModel) else held.base_model.model
    if isinstance(model, peft.tuners.tuners_utils.BaseTuner):
        return model.model
    return None


def text_config(model: Any) -> Any:
    """The configuration of the text decoder (hidden size, layers, soft-cap ...)."""
    return unwrap(model).config.get_text_config(decoder=True)


def decoder(model: Any) -> nn.Module:
    """The module that owns the text decoder's `layers`.

    Raises:
        DiveError: the model has none.
    """
    model = unwrap(model)
    found: Any = model.get_decoder() if hasattr(model, "get_decoder") else model
    # in a few families get_decoder() returns a whole causal LM: one unwrap leads to its decoder
    owners: tuple[Any, ...] = (found, getattr(found, "model", None))
    for owner in owners:
        module = _innermost(owner)  # the decoder alone may be in wrappers, too
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers) > 0:
            return module
    raise DiveError(
        f"{type(model).__name__} has no text decoder with a list of layers: dive steers the "
        "residual stream of decoder layers and cannot attach to this model"
    )


def decoder_layers(model: Any) -> nn.ModuleList:
    """The text decoder's layers, in the order in which they run."""
    layers: Any = decoder(model).layers
    return layers


def computes_on(module: nn.Module) -> torch.device:
    """The device on which a module computes.

    Under a device_map an offloaded module's weights are on "meta" between calls; accelerate's hooks
    have the device.
    """
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):  # one hook may wrap several
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next(module.parameters()).device


def backbone_facts(model: Any) -> dict[str, Any]:
    """The facts that an adapter must find again in the backbone it is attached to (JSON-able)."""
    model = unwrap(model)
    config, text = model.config, text_config(model)
    revision = getattr(config, "_commit_hash", None)
    return {
        "architecture": _architecture(model),
        "model_type": config.model_type,
        # a path would put the names of a disk and its owner into every adapter
        "name": public_name(str(getattr(config, "_name_or_path", "") or ""), bool(revision)),
        "revision": revision,
        "hidden_size": text.hidden_size,
        "num_layers": len(decoder_layers(model)),
        "vocab_size": text.vocab_size,
        "attn_implementation": getattr(config, "_attn_implementation", None),
    }


def _architecture(model: Any) -> str:
    """The transformers class of a model.

    A user's class that is derived from it, or forwards everything to it, has the same architecture.
    """
    for kind in type(model).__mro__:
        if kind.__module__.startswith("transformers.models."):
            return kind.__name__
    named: Any = getattr(model.config, "architectures", None)
    passes_on = bool(named) and not hasattr(type(model), "config_class")
    return str(named[0]) if passes_on else type(model).__name__


def is_compiled(model: nn.Module) -> bool:
    """Return whether torch.compile was applied to any of its modules."""
    return any(
        "_orig_mod" in module._modules
        or module._compiled_call_impl is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def forget_compiled(model: Any) -> None:
    """Drop compiled graphs of a model, which ignore hooks that are registered or removed later.

    transformers keeps a compiled call of its own. Waits until other threads have left compiled
    code, as torch frees it while they run it.

    Raises:
        DiveError: another thread runs compiled code for a minute.
    """
    model.__dict__.pop("_compiled_call", None)
    if "torch._dynamo" not in sys.modules:
        return
    until = time.monotonic() + _PATIENCE
    while _compiled_code_runs():
        if time.monotonic() > until:
            raise DiveError(
                "another thread has been running a compiled model for a minute; an adapter cannot "
                "be attached or taken off meanwhile: attach it before the threads start"
            )
        time.sleep(0.001)
    torch._dynamo.reset()


_PATIENCE = 60.0  # seconds


def _compiled_code_runs() -> bool:
    """Return whether another thread runs compiled code, by the file of torch in its call stack."""
    through = torch._dynamo.eval_frame.__file__
    for thread, frame in sys._current_frames().items():
        here: Any = frame if thread != threading.get_ident() else None
        while here is not None:
            if here.f_code.co_filename == through:
                return True
            here = here.f_back
    return False


def last_hidden_state(model: Any, batch: dict[str, Any]) -> Tensor:
    """[B, T, D]: the decoder's output after the final norm; no logits are computed.

    `batch` has the arguments of the model's forward (images included). Gradients flow to adapters.
    """
    model = unwrap(model)
    base = getattr(model, "base_model", model)
    if base is model:
        raise DiveError(
            f"{type(model).__name__} has no base model beneath its head, so its last hidden state "
            "cannot be had without logits"
        )
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "logits_to_keep")}
    return base(**{**inputs, "use_cache": False, "return_dict": True}).last_hidden_state


@dataclass(frozen=True)
class Head:
    """logits = softcap * tanh((x W^T + b) / softcap), or x W^T + b where softcap is None."""

    weight: Tensor  # [V, D], the model's own parameter
    bias: Tensor | None  # [V]
    softcap: float | None

    def __call__(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., V], in the dtype of the weight."""
        logits = F.linear(hidden.to(self.weight.device, self.weight.dtype), self.weight, self.bias)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


_HEAD_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_heads: WeakKeyDictionary[nn.Module, tuple[Any, Head]] = WeakKeyDictionary()


def output_head(model: Any) -> Head:
    """The head that turns `last_hidden_state` into logits.

    Checked for each model against its own logits on a few text tokens, once until its head, its
    soft-cap or its own hooks change: a model that does anything else to them (a logit scale, say)
    is refused, because losses computed with the head alone would be wrong. Call it before an
    adapter is attached with a mask. A head that is quantised, sharded or offloaded is refused, too:
    losses read its weight directly.

    Raises:
        DiveError: no head with a weight, or one that is refused.
    """
    model = unwrap(model)
    layer: Any = model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    state = _head_state(model)
    known, head = _heads.get(model, (None, None))
    if head is not None and known == state and not is_tuner(layer):
        return head
    if not isinstance(weight, Tensor):
        raise DiveError(f"{type(model).__name__} has no output head with a weight [V, D]")
    _check_weight(type(model).__name__, layer, weight)
    softcap = getattr(text_config(model), "final_logit_softcapping", None)
    least, most = checks.LEAST_SQUARED, checks.MOST_SQUARED
    if softcap is not None and not checks.is_number(softcap, least, most):
        raise DiveError(
            f"{type(model).__name__}: final_logit_softcapping is {softcap!r}, want a number from "
            f"{least:.3g} to {most:.3g}, or None"
        )
    head = Head(weight, getattr(layer, "bias", None), softcap)
    _check_head(model, head)
    _heads[model] = state, head
    return head


def _head_state(model: Any) -> tuple[Any, ...]:
    """Everything that turns the last hidden state into logits; a change asks for another check."""
    layer: Any = model.get_output_embeddings()
    return (
        id(getattr(layer, "weight", None)),
        id(getattr(layer, "bias", None)),
        getattr(text_config(model), "final_logit_softcapping", None),
        (*model._forward_hooks, *model._forward_pre_hooks, id(vars(model).get("forward"))),
    )


def _check_weight(name: str, layer: Any, weight: Tensor) -> None:
    if is_tuner(layer) and added(layer):
        raise DiveError(
            f"{name}: its output head has PEFT's {kind_of(layer)} at work, and dive reads the "
            "weight alone: merge it (merge_and_unload(), merge_adapter()), or leave the head out "
            "of its target_modules"
        )
    if hasattr(weight, "placements"):  # a DTensor
        raise DiveError(
            f"{name}: its output head is sharded over devices (tensor parallelism), and dive reads "
            "it whole: load the backbone without tp_plan (device_map puts whole layers on devices)"
        )
    if weight.device.type == "meta":
        raise DiveError(
            f"{name}: its output head is offloaded, and dive reads its weight in every step: give "
            'it a device in device_map ("lm_head": 0, and the embeddings with it where they share '
            "the weight), or offload other layers by max_memory"
        )
    plain = type(weight) in (Tensor, nn.Parameter) and weight.dim() == 2
    if not plain or weight.dtype not in _HEAD_DTYPES:
        raise DiveError(
            f"{name}: its output head is quantised ({type(weight).__name__} {weight.dtype} "
            f"{list(weight.shape)}), want a floating-point weight [V, D]: load the "
            'backbone with the head left out (bitsandbytes: llm_int8_skip_modules=["lm_head"]; '
            'elsewhere: modules_to_not_convert=["lm_head"])'
        )


@torch.no_grad()
def _check_head(model: "PreTrainedModel", head: Head) -> None:
    # ids of image tokens would need pixels
    names = [n for n in vars(model.config) if n.endswith(("token_id", "token_index"))]
    special = [getattr(model.config, name) for name in names]
    ids = [i for i in range(2, min(head.weight.shape[0], 64)) if i not in special][:12]
    embeddings: Any = model.get_input_embeddings()
    device = computes_on(embeddings)
    batch = {"input_ids": torch.tensor([ids], device=device)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    wanted = model(**batch, use_cache=False, return_dict=True).logits.float()
    if not wanted.isfinite().all():
        broken = (n for n, weight in model.named_parameters() if not weight.isfinite().all())
        raise DiveError(
            f"{type(model).__name__}: its logits are not finite for any prompt; the first weight "
            f"that is not: {next(broken, 'none, so that its numbers overflow')}"
        )
    got = head(last_hidden_state(model, batch)).float().to(wanted.device)
    tolerance = 4 * torch.finfo(head.weight.dtype).eps * wanted.abs().max()
    if got.shape != wanted.shape or not (got - wanted).abs().max() <= tolerance:
        raise DiveError(
            f"{type(model).__name__}: its logits are not last_hidden_state @ head.T (with bias and "
            "soft-cap), perhaps they are scaled; dive's losses would be wrong for this model"
        )
