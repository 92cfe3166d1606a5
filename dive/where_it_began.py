"""Where in a model numbers stopped being finite: one more forward, after the fact, that looks."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dive.adapter import SteeringAdapter
from dive.attach import Attachment, unsteered
from dive.structure import decoder_layers, forget_compiled, unwrap
from dive.turns import turn


def not_finite(tokens: int, began: str | None) -> str:
    """What a report says that ended so: after how many tokens, and where it began, if known."""
    where = "; where it began is not known" if began is None else f"; it began in {began}"
    return f"logits were not finite after {tokens} token{'' if tokens == 1 else 's'}{where}"


@contextmanager
def steered_by(model: Any, adapter: SteeringAdapter | None) -> Iterator[None]:
    """This thread's forwards inside are steered as the report was; what is attached stays so."""
    with turn(model):
        if adapter is None:
            yield  # the caller's own attachment, if there is one, is at work as it is
            return
        with unsteered(model):
            attachment = Attachment(model, adapter, check=False, scoped=True)
            try:
                with attachment.working():
                    yield
            finally:
                attachment.detach()


@torch.no_grad()
def where_it_began(model: Any, inputs: Mapping[str, Any], answer: list[int]) -> str | None:
    """The first part of the model that gives anything but finite numbers, in words.

    inputs: of one prompt, as `model.generate` takes them, on its device; answer: the tokens behind
    it. None: all are finite in this forward (what wrote the answer sums in another order, or a
    processor made them), or it cannot be run.
    """
    model = unwrap(model)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not _finite(value):
            return f"the input {name}"
    seen: list[tuple[str, Tensor]] = []
    layers = decoder_layers(model)
    thread = threading.get_ident()  # another's forward is not looked at

    @torch._disable_dynamo
    def note(name: str, values: Any) -> None:
        if threading.get_ident() == thread:
            seen.append((name, _good(values)))

    def before(_module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        note("the embeddings or the image features", args or kwargs.values())

    def after(name: str) -> Any:
        def look(_module: Any, _inputs: Any, output: Any) -> None:
            note(name, [output[0] if isinstance(output, tuple) else output])

        return look

    forget_compiled(model)
    handles = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    for index, layer in enumerate(layers):
        # before the hook that steers, and behind it
        handles.append(layer.register_forward_hook(after(f"layer {index}"), prepend=True))
        edit = f"the adapter's edit behind layer {index}"
        handles.append(layer.register_forward_hook(after(edit)))
    try:
        outputs = model(**_longer(inputs, answer), use_cache=False, return_dict=True)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None  # this is only to help: the report is told of all the same
    finally:
        for handle in handles:
            handle.remove()
    seen.append(("the final norm or lm_head", _good([outputs.logits])))
    for name, good in seen:
        if bool(good):
            continue
        module = layers[int(name.split()[1])] if name.startswith("layer ") else None
        weights = () if module is None else module.named_parameters()
        broken = next((one for one, weight in weights if not _finite(weight)), None)
        return name if broken is None else f"{name}, whose {broken} is not finite"
    return None


def _longer(inputs: Mapping[str, Any], answer: list[int]) -> dict[str, Any]:
    """The inputs with the answer behind the prompt; masks go on with 1, kinds of tokens with 0."""
    ids = inputs["input_ids"]
    longer = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            more = value.new_full((1, len(answer)), int(name == "attention_mask"))
            if name == "input_ids":
                more = value.new_tensor([answer])
            longer[name] = torch.cat([value, more], -1)
    return longer


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _good(values: Any) -> Tensor:
    """Whether the first of these that is a tensor of floating-point numbers is finite."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.isfinite().all()
    return torch.tensor(True)
